"""Baselines: each codec there and back at odd sizes, the remedies for what is missing, curves and BD-rates."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import string
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aeic_train.codecs.base import CodecFailed, CodecUnavailable
from aeic_train.codecs.baselines import PillowCodec, build
from aeic_train.codecs.command_line import Commands, from_file
from aeic_train.codecs.compressai_zoo import Zoo
from aeic_train.evaluation import rd_curves
from tests.support.roots import ROOT


def picture(height: int = 75, width: int = 101) -> np.ndarray[Any, Any]:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 2, columns * 2, (rows + columns) % 200], axis=2).astype(np.uint8)


@pytest.mark.parametrize("name", ["vvc", "avif-half", "heic", "heic-half", "webp", "jxl", "jpeg", "jpeg-half"])
def test_there_and_back(name: str) -> None:
    try:
        codec = build(name)
    except CodecUnavailable as error:
        pytest.skip(str(error))
    original = picture()
    sizes = []
    for setting in (codec.settings[len(codec.settings) // 3], codec.settings[-1]):
        data = codec.encode(original, setting)
        decoded = codec.decode(data, 101, 75)
        assert decoded.shape == original.shape and decoded.dtype == np.uint8
        sizes.append(len(data))
    assert codec.name == name
    assert sizes[0] < sizes[1], "settings stand in the order of their rates"
    assert np.abs(decoded.astype(int) - original).mean() < 12


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(CodecUnavailable, match=r"choose from vvc, .*-half"):
        build("bpg")
    with pytest.raises(CodecUnavailable, match="ARCHITECTURE:QUALITY=CHECKPOINT"):
        build("compressai:mbt2018")
    with pytest.raises(CodecUnavailable, match=r"no checkpoint .*none\.pth"):
        build("compressai:mbt2018:1=none.pth")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(CodecUnavailable, match="pip install pillow-heif"):
        build("heic-half")


def test_any_program(tmp_path: Path) -> None:
    script = tmp_path / "my codec.py"
    script.write_text(
        "import sys\nfrom PIL import Image\n"
        "how, source, target, *quality = sys.argv[1:]\n"
        "kind = {'format': 'WEBP', 'quality': int(quality[0])} if how == 'e' else {'format': 'PNG'}\n"
        "Image.open(source).save(target, **kind)\n"
    )
    table = tmp_path / "mine.toml"
    table.write_text(
        f"name = 'mine'\nsettings = [1, 50]\n"
        f"encode = \"{sys.executable} '{script}' e {{input}} {{output}} {{setting}}\"\n"
        f"decode = \"{sys.executable} '{script}' d {{input}} {{output}}\"\n"
    )
    codec = build(str(table))
    data = codec.encode(picture(), codec.settings[0])
    assert data[:4] == b"RIFF"
    assert codec.decode(data, 101, 75).shape == (75, 101, 3)
    broken = Commands("broken", [1], f"{sys.executable} -c raise(SystemExit('no_room')) {{input}}", "true")
    with pytest.raises(CodecFailed, match="no_room"):
        broken.encode(picture(), 1)


ROUNDTRIP = """
import sys, pathlib
from PIL import Image
pictures, made, streams, quality = sys.argv[1:]
for path in pathlib.Path(pictures).iterdir():
    stream = pathlib.Path(streams, "data", path.stem)
    stream.parent.mkdir()
    Image.open(path).save(stream, "JPEG", quality=int(quality))
    if quality != "3":
        Image.open(stream).save(pathlib.Path(made, path.name))
"""


def test_a_program_that_codes_a_folder(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "compress.py").write_text(ROUNDTRIP)
    table = tmp_path / "research.toml"
    table.write_text(
        f"name = 'research'\nsettings = [10, 50]\nfolder = '{tmp_path}'\n"
        f'roundtrip = "{sys.executable} src/compress.py {{pictures}} {{reconstructions}} {{streams}} {{setting}}"\n'
    )
    codec = build(str(table))
    data = codec.encode(picture(), 10)
    assert data[:2] == b"\xff\xd8"
    made = codec.decode(data, 101, 75)
    assert made.shape == (75, 101, 3) and 1 < abs(made.astype(float) - picture()).mean() < 60
    with pytest.raises(CodecFailed, match="only what it has just coded"):
        codec.decode(data, 101, 75)
    with pytest.raises(CodecFailed, match="0 pictures and"):
        codec.encode(picture(), 3)
    table.write_text(table.read_text().replace(str(tmp_path), str(tmp_path / "nowhere"), 1))
    with pytest.raises(CodecUnavailable, match="clone the project there"):
        build(str(table))


def test_the_files_in_the_guide_are_complete(tmp_path: Path) -> None:
    """docs/how-to/other-codecs.md: each block names its keys and its programs."""
    text = (ROOT / "docs" / "how-to" / "other-codecs.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.S)
    names = set()
    for block in blocks:
        table = tomllib.loads(block)
        names.add(table["name"])
        (tmp_path / "project").mkdir(exist_ok=True)
        file = tmp_path / "codec.toml"
        file.write_text(re.sub(r"(?m)^folder = .*$", f'folder = "{tmp_path}/project"', block))
        codec = from_file(file) if shutil.which(shlex.split(table["roundtrip"])[0]) else None
        assert codec is None or list(codec.settings) == table["settings"]
        fields = {name for _, name, _, _ in string.Formatter().parse(table["roundtrip"]) if name}
        assert fields <= {"pictures", "reconstructions", "streams", "setting"}
        assert {"pictures", "reconstructions"} <= fields
    assert names == {"AEIC-SE", "StableCodec", "DiffEIC"}


def test_a_command_file_that_lacks_something(tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    table.write_text("name = 'mine'\n")
    with pytest.raises(CodecUnavailable, match="settings"):
        build(str(table))
    table.write_text("name = 'm'\nsettings = [1]\nencode = 'no-such-program {input}'\ndecode = 'true'\n")
    with pytest.raises(CodecUnavailable, match="no program 'no-such-program'"):
        build(str(table))


@pytest.mark.slow
def test_a_model_of_the_zoo(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    zoo = pytest.importorskip("compressai.zoo")
    torch.manual_seed(0)
    file = tmp_path / "random.pth"
    torch.save(zoo.image_models["bmshj2018-hyperprior"](1, pretrained=False).state_dict(), file)
    codec = Zoo.from_text(f"bmshj2018-hyperprior:1={file}")
    data = codec.encode(picture(), 1)
    assert codec.settings == [1]
    assert codec.decode(data, 101, 75).shape == (75, 101, 3)


@pytest.mark.parametrize("start", [0, 30, 99])
def test_search_meets_its_targets_in_few_steps(start: int) -> None:
    tried: list[int] = []

    def bpp(index: int) -> float:
        tried.append(index)
        return 0.004 + 0.001 * math.exp(index / 9)

    targets = (0.015, 0.02, 0.03, 0.06)
    rd_curves.search(100, start, targets, bpp)
    rates = [bpp(index) for index in tried[:]]
    assert len(rates) == len(set(tried)) <= 24, "no setting is tried twice"
    for target in targets:
        assert min(abs(math.log(rate / target)) for rate in rates) < 0.12


def test_search_stops_where_the_codec_ends() -> None:
    tried: list[int] = []

    def bpp(index: int) -> float:
        tried.append(index)
        return 0.1 + index * 0.01

    rd_curves.search(5, 2, (0.01, 9.0), bpp)
    assert set(tried) >= {0, 4} and len(tried) <= 5


def curve(scale: float) -> list[rd_curves.Point]:
    return [
        {"bpp": scale * b, "psnr": 30 + 4 * math.log2(b / 0.02), "st_lpips": 0.5 - 0.1 * math.log2(b / 0.02)}
        for b in (0.01, 0.02, 0.03, 0.04, 0.06)
    ]


@pytest.mark.parametrize("measure", ["psnr", "st_lpips"])
def test_bd_rate_of_half_the_bits_is_minus_fifty(measure: str) -> None:
    assert rd_curves.bd_rate(curve(1), curve(0.5), measure) == pytest.approx(-50, abs=0.1)
    assert rd_curves.bd_rate(curve(1), curve(1), measure) == pytest.approx(0, abs=1e-6)


def test_no_bd_rate_where_curves_do_not_meet() -> None:
    far = [{"bpp": p["bpp"], "psnr": p["psnr"] + 40} for p in curve(1)]
    assert rd_curves.bd_rate(curve(1), far, "psnr") is None
    assert rd_curves.bd_rate(curve(1), curve(1)[:1], "psnr") is None
    assert rd_curves.bd_rate(curve(1), curve(1), "efflite_fd") is None


def test_at_equal_bits() -> None:
    assert rd_curves.at(curve(1), "psnr", 0.02) == pytest.approx(30)
    assert rd_curves.at(curve(1), "psnr", 0.05) == pytest.approx(30 + 4 * math.log2(2.5), abs=0.05)
    assert rd_curves.at(curve(1), "psnr", 0.07) is None


def test_document_has_compressais_shape_and_comes_back() -> None:
    document = rd_curves.document("x", "y", curve(1)[::-1])
    assert set(document) == {"name", "description", "results"}
    assert document["results"]["bpp"] == [0.01, 0.02, 0.03, 0.04, 0.06]
    assert set(document["results"]) == {"bpp", "psnr-rgb", "st-lpips"}
    assert rd_curves.curve_of(document)[1] == pytest.approx(curve(1)[1])


def test_pillow_codec_is_a_codec() -> None:
    codec = PillowCodec("png-ish", "JPEG")
    assert codec.decode(codec.encode(picture(1, 1), 50), 1, 1).shape == (1, 1, 3)
