"""The HTTP API and pictures: every kind that is taken, every kind that is not, and random damage."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.edge.in_process import edge, is_problem
from tests.support.pictures import BAD, GOOD, picture


async def test_every_kind_of_picture_is_converted(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, _):
        for name, content in GOOD.items():
            response = await client.post("/v1/frames", content=content)
            assert response.status_code == 202, (name, response.text)


async def test_sixteen_bit_and_exif_turned(tmp_path: Path, tiny_bundle: Path) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)).save(deep, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = picture(96, 64, exif=exif)

    async with edge(tmp_path, tiny_bundle) as (client, _):
        assert (await client.post("/v1/frames", content=deep.getvalue())).status_code == 202
        body = (await client.post("/v1/frames", content=turned)).json()
        assert (body["width"], body["height"]) == (64, 96)


async def test_bad_pictures_get_a_clear_answer_and_harm_nothing(tmp_path: Path, tiny_bundle: Path) -> None:
    async with edge(tmp_path, tiny_bundle) as (client, service):
        for content, status, word in BAD.values():
            is_problem(await client.post("/v1/frames", content=content), status, word)
            assert service.spool.pending_frames == 0 and service.queue.pending == 0 and service.uploads.held == 0
        assert (await client.post("/v1/frames", content=picture())).status_code == 202


async def test_random_damage_never_causes_a_5xx(tmp_path: Path, tiny_bundle: Path) -> None:
    rng = np.random.default_rng(11)

    async with edge(tmp_path, tiny_bundle) as (client, service):
        for sample in (picture(), picture(form="PNG"), picture(form="WEBP"), picture(form="PNG", mode="P")):
            for _ in range(60):
                mutated = bytearray(sample)
                for _ in range(int(rng.integers(1, 8))):
                    mutated[int(rng.integers(len(mutated)))] = int(rng.integers(256))
                if rng.random() < 0.3:
                    del mutated[int(rng.integers(1, len(mutated))) :]
                response = await client.post("/v1/frames", content=bytes(mutated))
                assert response.status_code in (202, 413, 415, 422), response.text
        assert service.uploads.held == 0 and service.queue.pending == 0
