"""LoRA in training: low-rank branches beside the frozen layers of the UNet, under the names of the official checkpoint.

Source: docs/model.md section 8.2. Converting a checkpoint merges them (weights.merge_lora).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from aeic_nets.official.keys import LORA_RANK, LORA_SCALING, lora_modules
from aeic_nets.unet import UNet

NAME = "default"


def attach(unet: UNet, rank: int = LORA_RANK) -> None:
    """Give every adapted layer ``lora_A.default`` and ``lora_B.default``, whose product starts at zero.

    The layer's output becomes W x + 0.25 B A x. Its own parameters are not changed, and not frozen here.
    """
    for _, layer in lora_modules(unet):
        device = layer.weight.device
        down: nn.Module
        up: nn.Module
        if isinstance(layer, nn.Linear):
            down = nn.Linear(layer.in_features, rank, bias=False, device=device)
            up = nn.Linear(rank, layer.out_features, bias=False, device=device)
        else:
            kernel: Any = layer.kernel_size
            moved: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
            down = nn.Conv2d(layer.in_channels, rank, kernel, bias=False, device=device, **moved)
            up = nn.Conv2d(rank, layer.out_channels, 1, bias=False, device=device)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        layer.lora_A = nn.ModuleDict({NAME: down})
        layer.lora_B = nn.ModuleDict({NAME: up})
        layer.register_forward_hook(_add_branch)


def _add_branch(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    branch: Tensor = layer.lora_B[NAME](layer.lora_A[NAME](inputs[0]))
    return torch.add(output, branch, alpha=LORA_SCALING)
