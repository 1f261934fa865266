"""A synthetic official checkpoint, all keys, random weights, reduced width, through `aeic convert` into a bundle."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aeic import profiles
from aeic.bundle import Bundle
from aeic.errors import BundleError
from aeic.latent_codec import LatentCodec
from aeic_nets.official.pickles import read_file
from aeic_nets.runtime.torch_backend import TorchGenerator
from aeic_tools.demo import local_services
from aeic_tools.demo.client import travel
from aeic_train.export import from_official
from tests.support.models.official_files import write_official
from tests.support.models.official_model import SMALL, small_model


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SD-Turbo's folder, halfDecoder.ckpt, aeic.pkl and some pictures, in the official forms."""
    folder = tmp_path_factory.mktemp("official")
    write_official(folder, SMALL)
    rng = np.random.default_rng(0)
    for i in range(2):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize((192, 128), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    profiles.PROFILES["small"] = replace(SMALL, name="small")
    yield folder
    del profiles.PROFILES["small"]


def arguments(official: Path, out: Path) -> list[str]:
    sources = ["--sd-turbo", official / "sd-turbo", "--half-decoder", official / "halfDecoder.ckpt"]
    return [str(part) for part in (*sources, "--checkpoint", official / "aeic.pkl", "--out", out)]


@pytest.mark.slow
def test_the_official_files_become_a_bundle(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    decoder = hashlib.sha256((official / "halfDecoder.ckpt").read_bytes()).hexdigest()
    monkeypatch.setitem(from_official.PUBLISHED_SHA256, "halfDecoder.ckpt", decoder)
    assert from_official.main([*arguments(official, out), "--calibration", str(official)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    bundle = Bundle.load(out)
    assert bundle.manifest["profile"] == "small"
    card = (out / "model_card.md").read_text()
    assert "Stability AI" in card
    assert f"| halfDecoder.ckpt | {decoder}, as published |" in card and card.count("as published") == 1
    steps = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert [line[:5] for line in steps] == [f"[{number}/5]" for number in range(1, 6)]
    assert "reading" in steps[0] and "profile small" in steps[1] and "writing" in steps[4]
    assert "price_of_exactness_percent" in bundle.manifest["card"]
    y = np.random.default_rng(0).normal(size=(16, 4, 6)).astype(np.float32)
    codec = LatentCodec(bundle, threads=1)
    latents = codec.decode(codec.encode(y, 0, 192, 128))
    with torch.no_grad():
        whole = small_model().generate(torch.from_numpy(latents.y_hat[None])).clamp(-1, 1).numpy()
    picture = TorchGenerator(out)(latents.y_hat[None])
    (onnx,) = bundle.session("synthesis", 1).run(None, {"y_hat": latents.y_hat[None]})
    with local_services.pair(
        tmp_path / "data", tmp_path, out
    ) as running:  # by ONNX Runtime: the services know no "small"
        journey = travel(running, (official / "0.png").read_bytes())
    with Image.open(io.BytesIO(journey.image)) as image:
        assert image.size == (192, 128)
    np.testing.assert_allclose(picture, whole, atol=0.02)  # weights are stored in half precision
    np.testing.assert_allclose(onnx, picture, atol=0.02)  # where small tensors stay in float32


def test_missing_tensors_are_listed_and_nothing_is_written(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = torch.load(official / "aeic.pkl", weights_only=True)
    del trained["state_dict_unet"]["mid_block.resnets.0.conv1.lora_A.student_unet_lora.weight"]
    trained["state_dict_codec"]["h_a.reduction.0.body.0.bias"] = torch.zeros(3)
    torch.save(trained, tmp_path / "aeic.pkl")
    command = arguments(official, tmp_path / "bundle")
    command[command.index("--checkpoint") + 1] = str(tmp_path / "aeic.pkl")
    with pytest.raises(BundleError) as error:
        from_official.main([*command, "--float-entropy"])
    assert "unet_ckpt: missing mid_block.resnets.0.conv1.lora_A.default.weight" in str(error.value)
    assert "codec: h_a.reduction.0.body.0.bias (3,), wanted" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["aeic.pkl"]
    progress = capsys.readouterr().err
    assert "[2/4]" in progress and "[3/4]" not in progress
    command[command.index("--half-decoder") + 1] = str(tmp_path / "missing.ckpt")
    with pytest.raises(BundleError, match=r"no file .*missing\.ckpt: docs/how-to/official\.md says where"):
        from_official.main([*command, "--float-entropy"])
    assert "reading" not in capsys.readouterr().err, "a missing file is noticed before the others are read"


class Callback:
    """Stands for a class of PyTorch Lightning: its state has tensors, which are not wanted."""

    def __init__(self) -> None:
        self.best = torch.ones(3)

    def __setstate__(self, state: object) -> None:
        raise AssertionError("code of the file's classes must not run")


class Settings(dict[Any, Any]):
    """As Lightning's AttributeDict."""


class Items(list[Any]):
    """A list of another package."""


def _explode(*_: object) -> None:
    raise AssertionError("code that the file names must not run")


class Reduced:
    """Unpickled by calling a function."""

    def __reduce__(self) -> tuple[object, ...]:
        return _explode, (1, 2), {"state": 1}


def test_objects_of_unknown_classes_are_left_out(tmp_path: Path) -> None:
    """What PyTorch Lightning stores beside the weights: callbacks (also as keys), settings, optimisers."""
    weight = torch.arange(6.0).reshape(2, 3)
    content = {
        "state_dict": {"decoder.conv_in.weight": weight},
        "callbacks": {Callback: {"best": Callback()}},
        "hyper_parameters": Settings(rate=3, nested=Settings(deep=Path("x"))),
        "loops": [Reduced(), Callback(), Items([1, 2]), np.float64(0.5), np.arange(3)],
    }
    torch.save(content, tmp_path / "lightning.ckpt")
    tensors = read_file(tmp_path / "lightning.ckpt", tmp_path)
    assert list(tensors) == ["state_dict/decoder.conv_in.weight"]
    assert (tensors["state_dict/decoder.conv_in.weight"] == weight).all()


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pkl", tmp_path / "trace"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(trace).encode() + b"'\ntR.")
    with pytest.raises(BundleError, match="tensors and plain containers only"):
        read_file(path, tmp_path)
    assert not trace.exists()


def test_extra_tensors_are_named(official: Path, tmp_path: Path) -> None:
    files = from_official.read_official(
        official / "sd-turbo" / from_official.SD_TURBO_FILES[1],
        official / "halfDecoder.ckpt",
        official / "aeic.pkl",
        tmp_path,
    )
    assert from_official.choose_profile(files, list(profiles.PROFILES.values())).name == "small"
    files["codec"] = dict(files["codec"]) | {"g_a.more": torch.zeros(1)}
    assert from_official.check(files, profiles.PROFILES["small"]) == ["codec: g_a.more"]


def test_a_bundle_says_what_it_was_made_from(official: Path) -> None:
    with pytest.raises(BundleError, match=r"no UNet weights under"):
        from_official.find_sd_turbo(official)
    assert json.loads(json.dumps(from_official.SD_TURBO_FILES))[0].startswith("unet/")
