"""Chooses the number type of torch on this processor: bfloat16 if a measurement shows that it is faster."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GAIN = 1.2
"""bfloat16 must be this many times as fast as float32 to be taken on a CPU."""


@lru_cache(maxsize=1)
@torch.inference_mode()
def bfloat16_gain() -> float:
    """How many times as fast as float32 a 3x3 convolution of 256 channels is in bfloat16 on this CPU; some 50 ms."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(1, 256, 48, 48, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.ones(256, 256, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        F.conv2d(x, weight, padding=1)
        begin = time.perf_counter()
        for _ in range(3):
            F.conv2d(x, weight, padding=1)
        seconds[dtype] = time.perf_counter() - begin
    return seconds[torch.float32] / seconds[torch.bfloat16]


def cuda_dtype(capability: tuple[int, int]) -> torch.dtype:
    """What a card of this compute capability multiplies fastest.

    bfloat16 from Ampere (8.0) on. Volta and Turing (7.x) emulate it slowly, so float16, whose range a picture may
    leave: the result must be checked. Older GPUs have no fast half precision: float32.
    """
    if capability >= (8, 0):
        return torch.bfloat16
    return torch.float16 if capability >= (7, 0) else torch.float32


def best_dtype(device: torch.device) -> torch.dtype:
    """That of :func:`cuda_dtype` on CUDA; bfloat16 on CPUs that multiply it natively (AMX, AVX512-BF16, Arm BF16),
    and float32 on others."""
    if device.type == "cuda":
        return cuda_dtype(torch.cuda.get_device_capability(device))
    return torch.bfloat16 if bfloat16_gain() >= GAIN else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 if :func:`best_dtype` is that; otherwise a context that changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=best_dtype(device) == torch.bfloat16)


def stored(name: str, module: nn.Module, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of parameter ``name`` of ``module`` as it is kept: layers that multiply in ``dtype``, all else in float32,
    as autocast computes it."""
    layer = module.get_submodule(name.rpartition(".")[0])
    return tensor.to(dtype if isinstance(layer, nn.Conv2d | nn.Linear) else torch.float32, copy=True)
