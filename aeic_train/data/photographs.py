"""Photographs for training: decoded once into one memory-mapped file, then cropped at random by background threads."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from aeic_train.data.synthetic import synthetic_crop
from aeic_train.workers import Workers

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
AHEAD = 4
"""Batches that are made before they are asked for."""
DECODED_AT_ONCE = 32
"""Pictures in memory while a folder is decoded."""


class Photographs:
    """All pictures of a folder as uint8 (H, W, 3) arrays on one memory-mapped file under ``cache``."""

    def __init__(self, folder: Path, cache: Path) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise FileNotFoundError(f"no photographs in {folder}: give a folder with JPEG, PNG or WebP files")
        key = hashlib.sha256("\n".join(f"{p.name} {p.stat().st_size}" for p in paths).encode()).hexdigest()[:12]
        pixels, index = cache / f"photographs-{key}.bin", cache / f"photographs-{key}.json"
        if not index.exists():
            cache.mkdir(parents=True, exist_ok=True)
            _decode_all(paths, pixels, index)
        self.names: list[str] = []
        self.pictures: list[NDArray[np.uint8]] = []
        data = np.memmap(pixels, np.uint8, "r")
        for name, offset, height, width in json.loads(index.read_text()):
            self.names.append(name)
            self.pictures.append(data[offset : offset + height * width * 3].reshape(height, width, 3))

    def __len__(self) -> int:
        return len(self.pictures)

    def evenly(self, count: int | None) -> tuple[list[str], list[NDArray[np.uint8]]]:
        """Names and pictures of at most ``count``, evenly spaced in the folder; of all for None."""
        step = max(1, len(self) // count) if count else 1
        return self.names[::step][:count], self.pictures[::step][:count]


def _decode_all(paths: list[Path], pixels: Path, index: Path) -> None:
    """Write both files under names of this process, then rename them, because several processes may do this at once."""
    rows: list[tuple[str, int, int, int]] = []
    offset = 0
    partial, partial_index = (path.with_name(f"{path.name}.{os.getpid()}") for path in (pixels, index))
    with partial.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        for begin in range(0, len(paths), DECODED_AT_ONCE):
            some = paths[begin : begin + DECODED_AT_ONCE]
            for path, array in zip(some, pool.map(_decode, some)):
                rows.append((path.name, offset, array.shape[0], array.shape[1]))
                file.write(array.tobytes())
                offset += array.size
    partial_index.write_text(json.dumps(rows))
    partial.rename(pixels)
    partial_index.rename(index)


def _decode(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def random_crop(picture: NDArray[np.uint8], size: int, rng: random.Random) -> NDArray[np.uint8]:
    """A crop of varied zoom: a square of 1 to 2 times ``size`` (as far as the picture goes), shrunk, perhaps mirrored.

    Shrinking hides the pictures' own JPEG artefacts. Returns uint8 (size, size, 3).
    """
    height, width = picture.shape[:2]
    largest = max(size, min(height, width, 2 * size))
    side = size if rng.random() < 0.4 else rng.randint(size, largest)
    if min(height, width) < side:  # the picture is smaller than the crop: mirror its border
        picture = np.pad(picture, [(0, max(0, side - height)), (0, max(0, side - width)), (0, 0)], mode="reflect")
        height, width = picture.shape[:2]
    top, left = rng.randint(0, height - side), rng.randint(0, width - side)
    crop = picture[top : top + side, left : left + side]
    if side != size:
        crop = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BOX, reducing_gap=None))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


@dataclass(frozen=True)
class CropSettings:
    """Which crops a stage sees."""

    size: int
    """Side in pixels."""
    batch: int
    """Crops in a batch of each process."""
    seed: int | str
    synthetic: float = 0.0
    """Share of synthetic pictures (synthetic.py)."""
    repeat: Mapping[str, int] = field(default_factory=dict)
    """How many times an epoch shows the pictures whose names begin with a prefix, such as ``{"coco_": 4}``. Once by
    default."""


class Crops:
    """Endless batches (N, 3, size, size) float32 in [-1, 1], channels last, on ``device``, made by background threads.

    A batch depends only on its number, ``settings`` and ``workers``, so a resumed run sees the crops that it would have
    seen. Each of the ``workers`` processes gets different crops. ``first`` is the number of the first batch.
    """

    def __init__(
        self,
        photographs: Photographs,
        settings: CropSettings,
        *,
        first: int = 0,
        workers: Workers | None = None,
        device: torch.device | str = "cpu",
        threads: int = 2,
    ) -> None:
        self._photographs, self._settings, self._threads = photographs, settings, threads
        self._first, self._workers, self._device = first, workers or Workers(), device
        names, repeat = photographs.names, settings.repeat
        self._epoch = [at for at, name in enumerate(names) for _ in range(_times(name, repeat))]
        if not self._epoch:
            raise ValueError(f"repeat leaves no photograph: {dict(repeat)}")
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(self._epoch)
        random.Random(f"{self._settings.seed}/epoch/{epoch}").shuffle(order)
        return order

    def _crop(self, index: int) -> NDArray[np.uint8]:
        """Crop number ``index`` of the run, counted over all processes."""
        settings = self._settings
        rng = random.Random(f"{settings.seed}/crop/{index}")
        if settings.synthetic and rng.random() < settings.synthetic:
            return synthetic_crop(settings.size, rng)
        epoch, place = divmod(index, len(self._epoch))
        return random_crop(self._photographs.pictures[self._order(epoch)[place]], settings.size, rng)

    def pixels(self, number: int) -> Tensor:
        """Batch ``number`` as uint8 (N, 3, size, size)."""
        batch = self._settings.batch
        begin = (number * self._workers.count + self._workers.rank) * batch
        crops = [self._crop(index) for index in range(begin, begin + batch)]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)

    def to_device(self, pixels: Tensor) -> Tensor:
        """uint8 pixels to float32 in [-1, 1]. The pixels are moved to the device first, because they have fewer
        bytes."""
        x = pixels.to(self._device, non_blocking=True).float().div(127.5).sub(1)
        return x.contiguous(memory_format=torch.channels_last)

    def __iter__(self) -> Iterator[Tensor]:
        with ThreadPoolExecutor(self._threads, thread_name_prefix="crops") as pool:
            coming = deque(pool.submit(self.pixels, self._first + ahead) for ahead in range(AHEAD))
            try:
                for number in count(self._first + AHEAD):
                    pixels = coming.popleft().result()
                    coming.append(pool.submit(self.pixels, number))
                    yield self.to_device(pixels)
            finally:
                for future in coming:
                    future.cancel()


def _times(name: str, repeat: Mapping[str, int]) -> int:
    """How many times an epoch shows the picture called ``name``, by the first prefix that matches."""
    return next((times for prefix, times in repeat.items() if name.startswith(prefix)), 1)
