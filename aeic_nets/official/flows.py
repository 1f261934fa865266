"""The research code's encoder loops, with everything that the golden vectors record. docs/model.md section 8.6."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from aeic.passes import PASS_COUNT, gather
from aeic.profiles import HYPER_STRIDE, SCALE_COUNT, SCALE_MAX, SCALE_MIN, SKIP_SCALE
from aeic_nets.codec import Codec, coding_mask


@dataclass(frozen=True)
class Flow:
    """``padding`` of y before h_a, and whether symbols that are not coded are 0 in the loop."""

    padding: Literal["zeros", "reflect"]
    zero_skipped: bool


FLOWS = {
    "A": Flow("zeros", zero_skipped=False),  # the official estimate, `inference`
    "B": Flow("reflect", zero_skipped=False),  # the official encoder, `compress`
    "C": Flow("reflect", zero_skipped=True),  # the same made consistent: the decoder reproduces it
}


def table_indexes(scales: Tensor) -> Tensor:
    """Scale to table index, int8 of the same shape: floored in the log domain, -1 where nothing is coded."""
    step = (math.log(SCALE_MAX) - math.log(SCALE_MIN)) / (SCALE_COUNT - 1)
    indexes = ((scales.clamp_min(1e-5).log() - math.log(SCALE_MIN)) / step).trunc().clamp(0, SCALE_COUNT - 1)
    return torch.where(scales < SKIP_SCALE, -1.0, indexes).to(torch.int8)


@torch.inference_mode()
def encode_flow(codec: Codec, y: Tensor, flow: Flow) -> dict[str, Tensor]:
    """y (1, M, h, w) through one loop. Keys are those of the golden files, without the flow's letter.

    ``coded_sym`` and ``coded_idx``: (M h w,) int8, the passes one after the other, each (M/4, h, w) in raster order.
    """
    height, width = y.shape[-2:]
    if flow.padding == "zeros":
        z = codec.h_a(F.pad(y, (0, -width % HYPER_STRIDE, 0, -height % HYPER_STRIDE)))
    else:
        z = codec.hyper(y)
    z_symbols = (z - codec.medians()).round()
    out = {"y": y, "z": z, "z_sym": z_symbols}
    out["h_s"] = codec.h_s((z_symbols + codec.medians()).contiguous())
    base = out["h_s"][..., :height, :width]
    all_means, all_scales, symbols = (torch.zeros_like(y) for _ in range(3))
    coded: dict[str, list[Tensor]] = {"coded_sym": [], "coded_idx": []}
    for i in range(PASS_COUNT):
        out[f"base{i}"] = base
        means, scales = codec.context(i, base)
        out[f"pass{i}_out"] = torch.cat((means, scales), dim=1)
        mask = coding_mask(i, y)
        q = (y - means).round()
        if flow.zero_skipped:
            q = torch.where(scales < SKIP_SCALE, 0.0, q)
        base = torch.where(mask, q + means, base)
        all_means, all_scales = torch.where(mask, means, all_means), torch.where(mask, scales, all_scales)
        symbols = torch.where(mask, q, symbols)
        for name, values in (("coded_sym", q), ("coded_idx", table_indexes(scales))):
            coded[name].append(torch.from_numpy(gather(values[0].numpy(), i)).flatten())
    out |= {"means": all_means, "scales": all_scales, "y_sym": symbols, "y_hat": base}
    return out | {name: torch.cat(parts).to(torch.int8) for name, parts in coded.items()}
