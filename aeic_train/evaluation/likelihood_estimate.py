"""Estimates rate and quality of unexported weights. Bits are estimated from likelihoods, without coding.

Estimates are within half a percent of real files. The 13 bytes that each file adds are included. Use it for
ablations and to inspect a run. Published figures come from ``aeic bench rd`` and real files.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from aeic.profiles import PICTURE_MULTIPLE
from aeic_nets.network import AEIC
from aeic_nets.runtime.precision import autocast
from aeic_train.evaluation.metrics import MetricSuite, frechet, summary

FILE_BYTES = 13
"""Bytes of a file beyond the bits of the likelihoods: header, check value and the loss of the coder."""


@torch.inference_mode()
def reconstruct(model: AEIC, picture: NDArray[np.uint8], rate: int) -> tuple[NDArray[np.uint8], float]:
    """The reconstruction of ``picture`` uint8 (H, W, 3) at a rate point, and its bits per pixel."""
    height, width = picture.shape[:2]
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float().div(127.5).sub(1)
    # Padding by the edge: reflection fails on sides under half the multiple. The border is cut off again.
    x = F.pad(x, (0, -width % PICTURE_MULTIPLE, 0, -height % PICTURE_MULTIPLE), mode="replicate")
    model.codec.zero_skipped = True
    with autocast(x.device):
        out = model(x, rate)
    bits = float(out["y_bits_hard"] + out["z_bits_hard"]) + 8 * FILE_BYTES
    result = out["x_hat"][0, :, :height, :width].float().clamp(-1, 1).add(1).mul(127.5).round().byte()
    return result.permute(1, 2, 0).numpy(), bits / (height * width)


def point(model: AEIC, pictures: list[NDArray[np.uint8]], rate: int, metric_suite: MetricSuite) -> dict[str, float]:
    """Means over ``pictures`` of bpp and every metric: one point of a curve (rd_curves.py)."""
    rows, originals, results = [], [], []
    for picture in pictures:
        result, bpp = reconstruct(model, picture, rate)
        metrics, original_features, result_features = metric_suite.measure(picture, result)
        rows.append({"bpp": bpp, **metrics})
        originals.append(original_features)
        results.append(result_features)
    return summary(rows) | {"efflite_fd": frechet(np.concatenate(originals), np.concatenate(results))}
