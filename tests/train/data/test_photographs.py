from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aeic_train.data.photographs import Crops, CropSettings, Photographs, random_crop
from aeic_train.data.synthetic import flat, noise, page, ramp, synthetic_crop, text
from aeic_train.losses.picture_loss import Jitter, PictureLoss
from aeic_train.workers import Workers


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
    batch = next(iter(Crops(Photographs(photographs, tmp_path), CropSettings(64, 3, seed=0))))
    assert batch.shape == (3, 3, 64, 64)
    assert batch.dtype == torch.float32
    assert -1 <= float(batch.min()) < float(batch.max()) <= 1


def test_a_batch_depends_on_its_number_alone(photographs: Path, tmp_path: Path) -> None:
    pictures = Photographs(photographs, tmp_path)
    from_start = [batch for batch, _ in zip(Crops(pictures, CropSettings(64, 3, seed=1, synthetic=0.3)), range(7))]
    resumed = [
        batch
        for batch, _ in zip(Crops(pictures, CropSettings(64, 3, seed=1, synthetic=0.3), first=4, threads=1), range(3))
    ]
    assert all(torch.equal(a, b) for a, b in zip(from_start[4:], resumed, strict=True))
    assert not torch.equal(from_start[0], from_start[1])
    assert not torch.equal(from_start[0], next(iter(Crops(pictures, CropSettings(64, 3, seed=2, synthetic=0.3)))))


def test_processes_share_out_what_one_would_see(photographs: Path, tmp_path: Path) -> None:
    pictures = Photographs(photographs, tmp_path)
    alone = Crops(pictures, CropSettings(64, 4, seed=1)).pixels(3)
    halves = [Crops(pictures, CropSettings(64, 2, seed=1), workers=Workers(rank, 2)).pixels(3) for rank in (0, 1)]
    assert torch.equal(alone, torch.cat(halves))


def test_pictures_of_a_kind_are_shown_more_often(photographs: Path, tmp_path: Path) -> None:
    pictures = Photographs(photographs, tmp_path)
    crops = Crops(pictures, CropSettings(64, 1, seed=1, repeat={"2": 3, "3": 0}))
    for epoch in (0, 1):
        shown = [pictures.names[at] for at in crops._order(epoch)]
        assert sorted(shown) == ["0.png", "1.png", "2.png", "2.png", "2.png"]
    assert crops._order(0) != Crops(pictures, CropSettings(64, 1, seed=2, repeat={"2": 3, "3": 0}))._order(0)
    with pytest.raises(ValueError, match="repeat leaves no photograph"):
        Crops(pictures, CropSettings(64, 1, seed=1, repeat={"": 0}))


def test_processes_that_decode_at_once_do_not_disturb_each_other(photographs: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        names = [found.result() for found in [pool.submit(_names, photographs, tmp_path) for _ in range(2)]]
    assert names == [["0.png", "1.png", "2.png", "3.png"]] * 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".json"]


def _names(photographs: Path, cache: Path) -> list[str]:
    return Photographs(photographs, cache).names


def test_made_up_pictures_are_mixed_in_only_where_asked_for(photographs: Path, tmp_path: Path) -> None:
    pictures = Photographs(photographs, tmp_path)
    counts = [
        sum(float(crop.amax((1, 2)).sub(crop.amin((1, 2))).max()) == 0 for crop in next(iter(crops)))
        for crops in (Crops(pictures, CropSettings(64, 32, 0)), Crops(pictures, CropSettings(64, 32, 0, synthetic=1.0)))
    ]
    assert counts[0] == 0
    assert 8 <= counts[1] <= 24  # half of the made-up ones are of one colour


@pytest.mark.parametrize("kind", [flat, ramp, page, text, noise])
def test_made_up_pictures_fill_their_square(kind: Callable[[int, random.Random], NDArray[np.uint8]]) -> None:
    for seed in range(20):
        picture = kind(64, random.Random(seed))
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8


def test_the_loss_of_flat_pictures_among_others_has_a_gradient_of_use(photographs: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    made_up = [flat(64, rng), *(synthetic_crop(64, rng) for _ in range(5))]
    crops = [*made_up, random_crop(Photographs(photographs, tmp_path).pictures[0], 64, rng)]
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    x_hat = (x + 0.02).requires_grad_()
    weights = {"mse": 20.0, "features": 0.2, "low": 0.5, "texture": 0.05, "grid": 300.0}
    PictureLoss()(x_hat, x, weights, Jitter()).total.backward()
    assert x_hat.grad is not None
    assert torch.isfinite(x_hat.grad).all()
    assert float(x_hat.grad.norm()) < 60
