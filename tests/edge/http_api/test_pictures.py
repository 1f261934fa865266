"""The HTTP API and pictures: every kind that is taken, every kind that is not, and random damage."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.edge.conftest import picture
from tests.support.in_process import edge, is_problem, run

GOOD = {
    "png": picture(form="PNG"),
    "webp": picture(form="WEBP"),
    "webp lossless": picture(form="WEBP", lossless=True),
    "grey": picture(mode="L"),
    "palette": picture(form="PNG", mode="P"),
    "bilevel": picture(form="PNG", mode="1"),
    "cmyk": picture(mode="CMYK"),
    "transparent": picture(form="PNG", mode="RGBA"),
    "grey with alpha": picture(form="PNG", mode="LA"),
    "progressive": picture(progressive=True),
    "smallest": picture(16, 16),
    "one row of blocks": picture(16, 700),
}


def test_every_kind_of_picture_is_converted(tmp_path, tiny_bundle):
    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle) as (client, _):
            for name, content in GOOD.items():
                response = await client.post("/v1/frames", content=content)
                assert response.status_code == 202, (name, response.text)

    run(scenario)


def test_sixteen_bit_and_exif_turned(tmp_path, tiny_bundle):
    deep = io.BytesIO()
    Image.fromarray(np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)).save(deep, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = picture(96, 64, exif=exif)

    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle) as (client, _):
            assert (await client.post("/v1/frames", content=deep.getvalue())).status_code == 202
            body = (await client.post("/v1/frames", content=turned)).json()
            assert (body["width"], body["height"]) == (64, 96)

    run(scenario)


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    out = io.BytesIO()
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


def gif() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "GIF")
    return out.getvalue()


BAD = {
    "empty": (b"", 422, "empty"),
    "text": (b"Dear edge, please find enclosed no picture. " * 20, 422, "jpeg"),
    "truncated jpeg": (picture(640, 480)[:2000], 422, "cut short"),
    "jpeg header only": (picture()[:30], 422, "picture"),
    "truncated png": (picture(form="PNG")[:-200], 422, "cut short"),
    "60,000 x 60,000": (claims(60_000, 60_000), 413, "pixels"),
    "9,000 x 20": (claims(9_000, 20), 413, "8192"),
    "bomb within the limits": (claims(8_000, 8_000), 422, "cut short"),
    "animated png": (animated("PNG"), 422, "animated"),
    "animated webp": (animated("WEBP"), 422, "animated"),
    "gif": (gif(), 415, "JPEG, PNG or WebP"),
    "bmp": (b"BM" + bytes(100), 415, "JPEG, PNG or WebP"),
    "pdf": (b"%PDF-1.7 \n", 415, "JPEG, PNG or WebP"),
    "too small": (picture(15, 64), 422, "16"),
}


def test_bad_pictures_get_a_clear_answer_and_harm_nothing(tmp_path, tiny_bundle):
    async def scenario() -> None:
        async with edge(tmp_path, tiny_bundle) as (client, service):
            for content, status, word in BAD.values():
                is_problem(await client.post("/v1/frames", content=content), status, word)
                assert service.spool.pending_frames == 0 and service.queue.pending == 0 and service.upload_bytes == 0
            assert (await client.post("/v1/frames", content=picture())).status_code == 202

    run(scenario)


def test_random_damage_never_causes_a_5xx(tmp_path, tiny_bundle):
    rng = np.random.default_rng(11)

    async def scenario() -> None:
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
            assert service.upload_bytes == 0 and service.queue.pending == 0

    run(scenario)
