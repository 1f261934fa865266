"""For tests of bench rd and of results files: metrics without networks, documents, a text file of another project."""

from __future__ import annotations

from typing import Any

import numpy as np

from aeic_train.evaluation import rd_curves
from aeic_train.evaluation.metrics import MetricSuite

LISTS = """# StableCodec on Kodak
bpp = [0.01, 0.02, 0.04]
psnr = [20.5, 22, 23]
msssim = [0.7, 0.75, 0.8]
kid = [0.001, 0.0005, 0.0002]

# CLIC 2020 Test
bpp = [0.01]
"""


class QuickMetrics(MetricSuite):
    """A suite without networks."""

    def measure(self, original: Any, reconstruction: Any) -> Any:
        error = float(np.abs(original.astype(float) - reconstruction).mean())
        names = ("psnr", "ms_ssim", "st_lpips", "efflite_lpips", "efflite_dists")
        pooled = original.reshape(-1, 3)[:50].astype(float)
        return dict.fromkeys(names, error), pooled, pooled + error


def documents() -> list[dict[str, Any]]:
    points = [
        {"bpp": 0.01 * i, "psnr": 20.0 + i, "ms_ssim": 0.6 + 0.05 * i, "lpips": 0.5 - 0.1 * i} for i in (1, 2, 3, 4)
    ]
    return [rd_curves.document(name, "a set", points) for name in ("aeic/x", "aeic:x", "vvc")]
