"""Encodes and decodes a folder of pictures and measures the results, each picture and setting once."""

from __future__ import annotations

import math
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aeic.pixels import load_picture
from aeic_train.codecs.base import Codec, CodecFailed
from aeic_train.evaluation import rd_curves
from aeic_train.evaluation.metrics import MetricSuite, frechet, summary
from aeic_train.evaluation.perceptual_metrics import PerceptualMetrics
from aeic_train.evaluation.results_table import Row, Table

INCEPTION = "inception"
"""Folder of the features for FID and KID."""


@dataclass
class Bench:
    """Codes and measures each picture once. ``out`` holds the results."""

    paths: list[Path]
    out: Path
    table: Table
    metric_suite: MetricSuite
    keep: bool = False
    perceptual: PerceptualMetrics = field(default_factory=PerceptualMetrics)

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
        self._save(self._features("original", "", path), original.astype(np.float16))
        self._save(self._features(codec.name, setting, path), pooled.astype(np.float16))
        if self.perceptual.extractor:
            for name, at, shown in (("original", "", picture), (codec.name, setting, reconstruction)):
                if not (target := self._features(name, at, path, INCEPTION)).exists():
                    self._save(target, self.perceptual.features(shown))
        measures |= self.perceptual.measure(picture, reconstruction)
        if self.keep:
            target = self.out / "pictures" / codec.name / str(setting) / f"{path.stem}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(reconstruction).save(target)
        seconds = (encoded - started, decoded - encoded) if getattr(codec, "timed", True) else (math.nan, math.nan)
        return {
            **{"codec": codec.name, "setting": setting, "picture": path.name, "crc32": self.checksums[path]},
            **{"width": width, "height": height, "bytes": len(data), "bpp": 8 * len(data) / (width * height)},
            **{name: round(value, 6) for name, value in measures.items()},
            **{"encode_seconds": round(seconds[0], 4), "decode_seconds": round(seconds[1], 4)},
        }

    def _features(self, codec: str, setting: Any, path: Path, network: str = "") -> Path:
        return self.out / "features" / network / codec / str(setting) / f"{path.stem}-{self.checksums[path]}.npy"

    @staticmethod
    def _save(path: Path, features: NDArray[Any]) -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part.npy")
            np.save(partial, features)
            partial.replace(path)

    def _sets(self, codec: str, setting: Any, network: str = "") -> tuple[NDArray[Any], NDArray[Any]] | None:
        """The features of all originals and of all reconstructions. None if rows came from another run, without."""
        sets = []
        for name, at in (("original", ""), (codec, setting)):
            paths = [self._features(name, at, path, network) for path in self.paths]
            if not all(path.exists() for path in paths):
                return None
            found = [features for features in map(np.load, paths) if len(features)]
            sets.append(np.concatenate(found) if found else np.zeros((0, 0), np.float32))
        return sets[0], sets[1]

    def distances(self, codec: str, setting: Any) -> dict[str, float]:
        """``efflite_fd``, ``fid`` and ``kid`` of one setting, as far as there are features for them."""
        found: dict[str, float] = {}
        sets = self._sets(codec, setting)
        if sets and len(sets[1]) > 1:
            found["efflite_fd"] = frechet(*(features.astype(np.float64) for features in sets))
        if self.perceptual.sets and (sets := self._sets(codec, setting, INCEPTION)):
            found |= self.perceptual.distances(*sets)
        return found


def curve(
    bench: Bench, codec: Codec, targets: Sequence[float] | None, known: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """The points of ``codec``: all its settings, or, with ``targets`` (bpp), those that the search tries.

    ``known`` has distances of an earlier run by "codec setting", for settings whose features are not here.
    """
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
        points.append({**point, **known.get(f"{codec.name} {setting}", {}), **bench.distances(codec.name, setting)})
    return points


def _start(codec: Codec) -> int:
    """The setting at which a search begins. It is low, because the rates are."""
    return {"vvc": 6, "vvc-half": 16}.get(codec.name, 0)
