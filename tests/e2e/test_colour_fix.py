"""Colour statistics from a picture to its copy: edge and cloud in this process, and the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from aeic.bitstream import Frame
from aeic.colour_statistics import ColourStatistics
from aeic.pixels import load_picture
from cloud_decoder.images.composition import enlarged, paste
from cloud_decoder.inference.decoder import Decoder
from tests.support import requests
from tests.support.cli import aeic
from tests.support.cloud.cloud import running_cloud
from tests.support.edge.in_process import edge
from tests.support.pictures import picture


def difference(one: ColourStatistics, other: ColourStatistics) -> int:
    """The largest, in multiples of 1/65535."""
    return int(np.abs(np.array(one.means + one.stds) - np.array(other.means + other.stds)).max())


@pytest.mark.parametrize(("choice", "versions"), [("never", [1, 1]), ("auto", [1, 2]), ("always", [2, 2])])
async def test_a_pair_corrects_the_pictures_that_the_setting_names(
    tiny_bundle: Path, tmp_path: Path, choice: str, versions: list[int]
) -> None:
    decoder = Decoder.from_bundle(tiny_bundle, "onnx")
    async with (
        running_cloud(decoder, tmp_path / "cloud") as cloud,
        edge(tmp_path / "edge", tiny_bundle, cloud_address=cloud.grpc, colour_fix=choice) as (box, _),
        httpx.AsyncClient(base_url=cloud.http) as http,
    ):
        for (width, height), version in zip([(768, 768), (784, 768)], versions, strict=True):
            file = picture(width, height, form="PNG", seed=5)
            sent = await box.post("/v1/frames?wait=delivered&timeout=30", content=file)
            assert sent.json()["state"] == "delivered", sent.text
            ident = sent.json()["id"]
            frame = Frame.parse((await http.get(f"/v1/frames/{ident}/bitstream")).content)
            original = ColourStatistics.of(load_picture(file))
            assert (frame.version, frame.colour) == (version, original if version == 2 else None)
            image = await http.get(f"/v1/frames/{ident}/image", params={"format": "png", "wait": 30})
            shown = ColourStatistics.of(load_picture(image.content))
            # The tiny bundle's pictures are blurred, which costs contrast.
            assert (difference(shown, original) < 700) == (version == 2), (shown, original)


async def test_a_region_is_corrected_for_itself_before_it_is_composed(tiny_bundle: Path, tmp_path: Path) -> None:
    decoder, region = Decoder.from_bundle(tiny_bundle, "onnx"), (64, 128, 256, 192)
    file = picture(800, 800, form="PNG", seed=5)
    more = {"colour_fix": "always", "originals_max_bytes": 1 << 22, "target_bytes": 400}
    async with (
        running_cloud(decoder, tmp_path / "cloud") as cloud,
        edge(tmp_path / "edge", tiny_bundle, cloud_address=cloud.grpc, **more) as (box, _),
        httpx.AsyncClient(base_url=cloud.http, timeout=60) as http,
    ):
        sent = await box.post("/v1/frames?wait=delivered&timeout=30", content=file)
        parent = f"/v1/frames/{sent.json()['id']}"
        x, y, width, height = region
        ask = {"kind": "region", "region": {"x": x, "y": y, "width": width, "height": height}, "max_bytes": 4000}
        ended = await requests.ended(http, await http.post(f"{parent}/requests", json=ask))
        assert ended["state"] == "answered", ended
        frames = [(await http.get(f"{url}/bitstream")).content for url in (parent, f"/v1/frames/{ended['answer']}")]
        composed = await http.get(f"{parent}/composed", params={"format": "png", "wait": 30})
    assert [Frame.parse(data).version for data in frames] == [2, 2]
    cropped = np.ascontiguousarray(load_picture(file)[y : y + height, x : x + width])
    assert Frame.parse(frames[1]).colour == ColourStatistics.of(cropped)
    whole, part = decoder.decode(frames)
    expected = enlarged(whole, (800, 800))
    paste(expected, (800, 800), part, region)
    assert (load_picture(composed.content) == expected).all()


def test_the_command_line(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(picture(400, 300, form="PNG", seed=5))
    original = ColourStatistics.of(load_picture(file))
    model = ("--model", str(tiny_bundle))
    aeic("encode", str(file), str(tmp_path / "plain.aeic"), "--colour-fix", "auto", *model)
    aeic("encode", str(file), str(tmp_path / "fixed.aeic"), "--colour-fix", "always", *model)
    shown = {}
    for name, version in (("plain", 1), ("fixed", 2)):
        data = (tmp_path / f"{name}.aeic").read_bytes()
        assert Frame.parse(data).version == version
        told = json.loads(aeic("info", str(tmp_path / f"{name}.aeic"), "--json", *model)[1])
        assert (told["version"], told["header_bytes"], told["bytes"]) == (version, 9 + 12 * (version - 1), len(data))
        aeic("decode", str(tmp_path / f"{name}.aeic"), str(tmp_path / f"{name}.png"), *model)
        with Image.open(io.BytesIO((tmp_path / f"{name}.png").read_bytes())) as image:
            shown[name] = ColourStatistics.of(np.asarray(image))
    assert difference(shown["fixed"], original) < 700 < difference(shown["plain"], original)
    code, _, told = aeic("encode", str(file), str(tmp_path / "no.aeic"), "--colour-fix", "sometimes", *model)
    assert code == 2 and "never, auto, always" in told
