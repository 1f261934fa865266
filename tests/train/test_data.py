from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from aeic_train.data import Crops, Photographs, random_crop


def test_pictures_are_decoded_once(photographs: Path, tmp_path: Path) -> None:
    first = Photographs(photographs, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = Photographs(photographs, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    assert second.names == ["0.png", "1.png", "2.png", "3.png"]
    assert all((a == b).all() for a, b in zip(first.pictures, second.pictures, strict=True))


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no photographs"):
        Photographs(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("shape", [(300, 200), (64, 64), (40, 500)])
def test_crops_have_their_size_whatever_the_picture(shape: tuple[int, int]) -> None:
    picture = np.arange(shape[0] * shape[1] * 3, dtype=np.uint8).reshape(*shape, 3)
    rng = random.Random(0)
    assert {random_crop(picture, 64, rng).shape for _ in range(20)} == {(64, 64, 3)}


def test_batches_are_in_range(photographs: Path, tmp_path: Path) -> None:
    batch = next(iter(Crops(Photographs(photographs, tmp_path), 64, 3, seed=0)))
    assert batch.shape == (3, 3, 64, 64)
    assert batch.dtype == torch.float32
    assert -1 <= float(batch.min()) < float(batch.max()) <= 1
