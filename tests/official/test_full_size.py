"""The synthetic official checkpoint at full size: converted, and a picture through both services. `make test-full`."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aeic import profiles
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from aeic_nets.runtime.torch_backend import TorchGenerator
from aeic_tools.demo import local_services
from aeic_tools.demo.client import request, travel
from aeic_train.export import from_official
from tests.support.models.official_files import write_official
from tests.support.roots import EXAMPLES


@pytest.mark.slow
@pytest.mark.skipif("AEIC_FULL" not in os.environ, reason="full size: minutes, 8 GB of memory, 5 GB of disk")
@pytest.mark.parametrize("profile", os.environ.get("AEIC_FULL", "se").split(","))
def test_full_size_from_the_official_files_to_a_picture(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = write_official(tmp_path / "official", profiles.profile(profile))
    (tmp_path / "pictures").mkdir()
    for name in ("owl.jpg", "coffee.jpg"):
        shutil.copy(EXAMPLES / name, tmp_path / "pictures" / name)
    out = tmp_path / "bundle"
    command = [*sources, "--calibration", str(tmp_path / "pictures"), "--out", str(out)]
    assert from_official.main(command) == 0
    shutil.rmtree(tmp_path / "official")
    bundle = Bundle.load(out)
    assert bundle.manifest["profile"] == profile
    assert "synthesis.onnx" not in bundle.manifest["files"]
    assert "weights.safetensors" in bundle.manifest["defines_bitstream"]

    monkeypatch.setattr(local_services, "START_SECONDS", 240.0)
    sent = io.BytesIO()
    with Image.open(EXAMPLES / "owl.jpg") as owl:
        owl.resize((192, 128)).save(sent, "png")
    with local_services.pair(tmp_path / "data", tmp_path, out) as running:
        journey = travel(running, sent.getvalue(), seconds=240)
        frame = request(f"{running.cloud.http}/v1/frames/{journey.accepted['id']}/bitstream")
    with Image.open(io.BytesIO(journey.image)) as image:
        found = np.asarray(image, np.float32) / 127.5 - 1
    y_hat = LatentCodec(bundle, threads=1).decode(frame).y_hat
    wanted = TorchGenerator(out)(y_hat[None])[0, :, :128, :192].transpose(1, 2, 0)
    assert found.shape == (128, 192, 3)
    assert np.abs(found - wanted).mean() < 0.01
