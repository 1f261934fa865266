"""Photographs for training: decoded once into one memory-mapped file, then cropped at random by a background thread."""

from __future__ import annotations

import hashlib
import json
import queue
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from aeic_train.data.synthetic import synthetic_crop

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


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


def _decode_all(paths: list[Path], pixels: Path, index: Path) -> None:
    rows: list[tuple[str, int, int, int]] = []
    offset = 0
    partial = pixels.with_suffix(".partial")
    with partial.open("wb") as file:
        for path in paths:
            with Image.open(path) as image:
                array = np.asarray(image.convert("RGB"))
            rows.append((path.name, offset, array.shape[0], array.shape[1]))
            file.write(array.tobytes())
            offset += array.size
    partial.rename(pixels)
    index.write_text(json.dumps(rows))


def random_crop(picture: NDArray[np.uint8], size: int, rng: random.Random) -> NDArray[np.uint8]:
    """A crop of varied zoom: a square of 1 to 2 times ``size`` (as far as the picture goes), shrunk, perhaps mirrored.

    Shrinking hides the pictures' own JPEG artefacts. Returns uint8 (size, size, 3).
    """
    height, width = picture.shape[:2]
    largest = max(size, min(height, width, 2 * size))
    side = size if rng.random() < 0.4 else rng.randint(size, largest)
    if min(height, width) < side:  # a picture smaller than the crop: mirror its border
        picture = np.pad(picture, [(0, max(0, side - height)), (0, max(0, side - width)), (0, 0)], mode="reflect")
        height, width = picture.shape[:2]
    top, left = rng.randint(0, height - side), rng.randint(0, width - side)
    crop = picture[top : top + side, left : left + side]
    if side != size:
        crop = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BOX, reducing_gap=None))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


class Crops:
    """Endless batches (N, 3, size, size) float32 in [-1, 1], channels last, made by a background thread.

    ``synthetic`` is the share of made-up pictures (synthetic.py) among them.
    """

    def __init__(self, photographs: Photographs, size: int, batch: int, seed: int, synthetic: float = 0.0) -> None:
        self._photographs, self._size, self._batch, self._synthetic = photographs, size, batch, synthetic
        self._random = random.Random(seed)
        self._queue: queue.Queue[Tensor] = queue.Queue(maxsize=4)
        threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self) -> None:
        order: list[int] = []
        while True:
            crops = []
            for _ in range(self._batch):
                if self._synthetic and self._random.random() < self._synthetic:
                    crops.append(synthetic_crop(self._size, self._random))
                    continue
                if not order:
                    order = list(range(len(self._photographs)))
                    self._random.shuffle(order)
                crops.append(random_crop(self._photographs.pictures[order.pop()], self._size, self._random))
            batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
            self._queue.put(batch.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last))

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield self._queue.get()
