"""Run as a program: the factorised prior at whole numbers, computed as the research code's CPU did.

Counts are rounded from float32, and the last bit of a tanh decides some of them. torch takes it from MKL, whose AVX-512
variant gives other bits than its AVX2 and SSE variants; which one is used is settled at the first call of a process.
So this one sets it before, and reads and writes npz on its standard streams. Needs torch and numpy only.
"""

from __future__ import annotations

import io
import os
import sys

os.environ["MKL_CBWR"] = "COMPATIBLE"

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LAYERS = 5


def logits(values: Tensor, arrays: dict[str, Tensor]) -> Tensor:
    """The cumulative logit of (C, 1, n) values. Source: docs/model.md section 4.3."""
    for i in range(LAYERS):
        values = torch.matmul(F.softplus(arrays[f"matrix{i}"]), values) + arrays[f"bias{i}"]
        if i < LAYERS - 1:
            values = values + torch.tanh(arrays[f"factor{i}"]) * torch.tanh(values)
    return values


def main() -> None:
    torch.set_num_threads(1)
    with np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    first = arrays["first"][:, None, None]  # (C, 1, 1): the lowest value of each channel
    values = torch.arange(int(arrays["count"])) + first
    lower, upper = (logits(values + half, arrays) for half in (-0.5, 0.5))
    pmf = torch.sigmoid(upper) - torch.sigmoid(lower)
    tails = torch.sigmoid(lower[:, 0, :1]) + torch.sigmoid(-upper[:, 0, -1:])
    np.savez(sys.stdout.buffer, pmf=pmf[:, 0].numpy(), tails=tails.numpy())


if __name__ == "__main__":
    main()
