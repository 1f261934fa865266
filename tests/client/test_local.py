"""Decoding at the client gives the picture of the cloud, or says which extra is missing."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aeic.bundle import Bundle
from aeic.errors import Damaged, WrongModel
from aeic_client import Client
from aeic_client.local import LocalDecoder
from tests.support.cloud.cloud import CloudThread
from tests.support.frames import MakeFrame

WITHOUT = """
import sys
sys.modules[{package!r}] = None
from aeic_client import Client
from aeic_client.local import DecoderMissing, LocalDecoder
try:
    LocalDecoder({bundle!r})
except DecoderMissing as error:
    print(error)
"""


def test_the_picture_is_that_of_the_cloud(bundle: Bundle, make_frame: MakeFrame, tmp_path: Path) -> None:
    started = CloudThread(bundle, tmp_path)
    try:
        new = started.put(make_frame(1))
        with Client(started.cloud.http) as cloud, LocalDecoder(bundle.path, threads=1) as decoder:
            there = np.asarray(Image.open(io.BytesIO(cloud.image(new.id))).convert("RGB"))
            data = cloud.bitstream(new.id)
            assert (decoder.decode(data) == there).all()
            assert decoder.picture(data, "webp", 64)[8:12] == b"WEBP"
            small = Image.open(io.BytesIO(decoder.picture(data, width=64)))
            assert small.size == (64, 48)
            with pytest.raises(Damaged):
                decoder.decode(data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(WrongModel):
                decoder.decode(data[:6] + bytes([data[6] ^ 1]) + data[7:])
    finally:
        started.stop()


@pytest.mark.parametrize("package", ["onnxruntime", "sqlalchemy"])
def test_the_extra_is_named_where_it_is_missing(bundle: Bundle, package: str) -> None:
    """The client alone has httpx and no decoder. Of the cloud's packages, only the runtime is used."""
    code = WITHOUT.format(package=package, bundle=str(bundle.path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ('pip install ".[cloud-cpu]"' in done.stdout) == (package == "onnxruntime"), done.stdout
