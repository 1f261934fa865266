"""Encodes and decodes a folder of pictures and measures the results, each picture and setting once."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aeic.pixels import load_picture
from aeic_train.codecs.base import Codec, CodecFailed
from aeic_train.evaluation import rd_curves
from aeic_train.evaluation.metrics import MetricSuite, Pooled, frechet, summary
from aeic_train.evaluation.results_table import Row, Table


@dataclass
class Bench:
    """Codes and measures each picture once. ``out`` holds the results."""

    paths: list[Path]
    out: Path
    table: Table
    metric_suite: MetricSuite
    keep: bool = False

    def __post_init__(self) -> None:
        self.checksums = {path: f"{zlib.crc32(path.read_bytes()):08x}" for path in self.paths}

    def point(self, codec: Codec, setting: Any) -> list[Row]:
        """The rows of all pictures at one setting."""
        rows = []
        for number, path in enumerate(self.paths):
            key = (codec.name, str(setting), path.name, self.checksums[path])
            if key not in self.table.rows:
                if sys.stderr.isatty():
                    print(f"\r{codec.name} {setting}: {number + 1}/{len(self.paths)}\033[K", end="", file=sys.stderr)
                self.table.add(self._row(codec, setting, path))
            rows.append(self.table.rows[key])
        bpp = np.mean([row["bpp"] for row in rows])
        print(f"\r{codec.name} {setting}: {bpp:.4f} bpp\033[K" if sys.stderr.isatty() else
              f"{codec.name} {setting}: {bpp:.4f} bpp", file=sys.stderr)  # fmt: skip
        return rows

    def _row(self, codec: Codec, setting: Any, path: Path) -> Row:
        picture = load_picture(path)
        height, width = picture.shape[:2]
        started = time.perf_counter()
        data = codec.encode(picture, setting)
        encoded = time.perf_counter()
        reconstruction = codec.decode(data, width, height)
        decoded = time.perf_counter()
        if reconstruction.shape != picture.shape:
            raise CodecFailed(f"{codec.name}: {path.name} came back as {reconstruction.shape}, not {picture.shape}")
        measures, original, pooled = self.metric_suite.measure(picture, reconstruction)
        self._save(self._features("original", "", path), original)
        self._save(self._features(codec.name, setting, path), pooled)
        if self.keep:
            target = self.out / "pictures" / codec.name / str(setting) / f"{path.stem}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(reconstruction).save(target)
        return {
            **{"codec": codec.name, "setting": setting, "picture": path.name, "crc32": self.checksums[path]},
            **{"width": width, "height": height, "bytes": len(data), "bpp": 8 * len(data) / (width * height)},
            **{name: round(value, 6) for name, value in measures.items()},
            **{"encode_seconds": round(encoded - started, 4), "decode_seconds": round(decoded - encoded, 4)},
        }

    def _features(self, codec: str, setting: Any, path: Path) -> Path:
        return self.out / "features" / codec / str(setting) / f"{path.stem}-{self.checksums[path]}.npy"

    @staticmethod
    def _save(path: Path, features: Pooled) -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part.npy")
            np.save(partial, features.astype(np.float16))
            partial.replace(path)

    def frechet(self, codec: str, setting: Any) -> float | None:
        """``efflite_fd`` of one setting. None if its rows came from another run, which gives no features."""
        of: tuple[tuple[str, Any], ...] = ((codec, setting), ("original", ""))
        sets = [[self._features(name, at, path) for path in self.paths] for name, at in of]
        if not all(path.exists() for paths in sets for path in paths):
            return None
        made, original = (np.concatenate([np.load(path) for path in paths]).astype(np.float64) for paths in sets)
        return frechet(original, made) if len(made) > 1 else None


def curve(bench: Bench, codec: Codec, targets: Sequence[float] | None, known: dict[str, Any]) -> list[dict[str, Any]]:
    """The points of ``codec``: all its settings, or, with ``targets`` (bpp), those that the search tries."""
    found: dict[int, list[Row]] = {}

    def measure(index: int) -> float:
        found[index] = bench.point(codec, codec.settings[index])
        return float(np.mean([row["bpp"] for row in found[index]]))

    if targets is None:
        for index in range(len(codec.settings)):
            measure(index)
    else:
        rd_curves.search(len(codec.settings), _start(codec), targets, measure)
    points = []
    for index, rows in sorted(found.items()):
        setting = codec.settings[index]
        point: dict[str, Any] = {"setting": setting, **summary(rows)}
        point["bytes"] = float(np.mean([row["bytes"] for row in rows]))
        distance = bench.frechet(codec.name, setting)
        distance = known.get(f"{codec.name} {setting}") if distance is None else distance
        points.append(point if distance is None else {**point, "efflite_fd": distance})
    return points


def _start(codec: Codec) -> int:
    """The setting at which a search begins. It is low, because the rates are."""
    return {"vvc": 6, "vvc-half": 16}.get(codec.name, 0)
