"""y_hat to pictures on torch: what the cloud runs on a GPU. Knows no bitstream and no queue."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from aeic import profiles
from aeic.errors import BundleError
from aeic_nets.folding import shrink
from aeic_nets.runtime import memory_plan
from aeic_nets.runtime.cuda_graphs import AGAIN, CudaRecorder, Graphed
from aeic_nets.runtime.precision import best_dtype, stored
from aeic_nets.synthesis import PictureGenerator

log = logging.getLogger(__name__)

HALF_GAIN = 0.9
HALF_PSNR = 35.0
"""What bfloat16 must bring on a CPU: at most this share of float32's time, at least this many dB beside its picture."""
_TILE = 32  # latents; the side of the picture that warms a card up
_PARTS = ("codec.g_s.", "unet.", "vae.")
_AT_ONCE = 32  # tensors
_PICTURE_ENTRY = "vae.decoder.conv_in.weight"


class TorchGenerator:
    """The synthesis of a bundle on one device; calls are not concurrent (one owner thread).

    On CUDA it computes in bfloat16, channels last, each part by CUDA graphs for shapes that come again. On the CPU it
    computes in float32, the same numbers as the ONNX graph, unless :meth:`warm_up` finds bfloat16 faster. The published
    sizes, which have no such graph, are loaded in bfloat16 where the processor is faster at it (precision.py): a
    fraction of the time and half the memory. CUDA has not been run on a card yet.
    """

    def __init__(
        self, bundle_path: str | Path, device: str = "cpu", threads: int = 0, dtype: torch.dtype | None = None
    ) -> None:
        """Loads g_s, UNet and picture decoder from ``bundle_path``; ``BundleError`` if the weights do not fit.

        ``threads`` of torch on the CPU, for the whole process; 0 takes all cores that the process may use. ``dtype``
        float32 or bfloat16 instead of what would be chosen.
        """
        folder = Path(bundle_path)
        manifest = json.loads((folder / "bundle.json").read_text())
        self.device = torch.device(device)
        if self.device.type == "cpu":  # torch itself counts the machine's cores; more threads than ours wait spinning
            torch.set_num_threads(threads or _cores())
        with torch.device("meta"):
            self._model = PictureGenerator(profiles.profile(manifest["profile"]))
        wanted = {name for name, _ in self._model.named_parameters() if name.startswith(_PARTS)}
        with safe_open(folder / "weights.safetensors", "pt") as file:
            known = set(file.keys())
            if _is_folded(file, self._model):
                with torch.device("meta"):
                    shrink(self._model)
            if missing := sorted(wanted - known):
                raise BundleError(
                    f"{folder}/weights.safetensors lacks {missing[0]} and {len(missing) - 1} more:"
                    " export the bundle again"
                )
        self._settled = dtype is not None or self.device.type == "cuda" or not (folder / "synthesis.onnx").exists()
        self.dtype = dtype or (best_dtype(self.device) if self._settled else torch.float32)
        names = sorted(wanted)
        for start in range(0, len(names), _AT_ONCE):
            # Opened anew each time: the file's pages count as ours for as long as it is open.
            with safe_open(folder / "weights.safetensors", "pt") as file:
                tensors = {
                    name: stored(name, self._model, file.get_tensor(name), self.dtype).to(self.device)
                    for name in names[start : start + _AT_ONCE]
                }
            self._model.load_state_dict(tensors, strict=False, assign=True)
        self.parts: dict[str, float] = {}
        self._channels = self._model.profile.latent_channels
        for part in self._modules():
            part.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        recorder = CudaRecorder() if self.device.type == "cuda" else None
        self._g_s, self._unet, self._vae = ((Graphed(part, recorder) if recorder else part) for part in self._modules())

    @torch.inference_mode()
    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """y_hat (N, M, h, w) float32, gain undone, to pictures (N, 3, 32h, 32w) float32 in [-1, 1].

        ``MemoryError`` before anything is computed if the device has not the memory for it (memory_plan.py).
        """
        made, clock = self._generate(y_hat)
        result: NDArray[Any] = made.clamp(-1, 1).cpu().numpy()
        self.parts = clock.seconds()
        return result

    @torch.inference_mode()
    def pictures(self, y_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The same as (N, 32h, 32w, 3) uint8, rounded on the device: a quarter of the bytes to fetch from it."""
        made, clock = self._generate(y_hat)
        levels = (made.nan_to_num() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        result: NDArray[Any] = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.parts = clock.seconds()
        return result

    def _generate(self, y_hat: NDArray[np.float32]) -> tuple[torch.Tensor, _Clock]:
        memory_plan.check(self._model.profile, len(y_hat), y_hat.shape[2], y_hat.shape[3], self.device)
        values = torch.from_numpy(y_hat).to(self.device, memory_format=torch.channels_last)
        clock = _Clock(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            latent, residual = self._g_s(values)
            clock.mark("g_s")
            features = self._unet(latent) + residual
            clock.mark("unet")
            pictures = self._vae(features)
            clock.mark("vae")
        return pictures.float(), clock

    @property
    def problem(self) -> str:
        """Always empty: a failed device shows itself in the next batch."""
        return ""

    @property
    def runtime(self) -> str:
        """torch and what it multiplies in, for people."""
        return f"torch {str(self.dtype).removeprefix('torch.')}"

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that torch holds on the card; empty on a CPU."""
        if self.device.type != "cuda":
            return {}
        allocated, reserved = torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)
        return {"allocated": allocated, "reserved": reserved}

    def warm_up(self, max_batch: int) -> None:
        """On CUDA: record the tile's shape, alone and in a full batch. On the CPU: choose the dtype by measurement.

        bfloat16 is taken where it is faster by a tenth at least and its picture within ``HALF_PSNR`` of float32's.
        """
        if self.device.type == "cuda":
            for count in sorted({1, max_batch}):
                for _ in range(AGAIN):
                    self.pictures(np.zeros((count, self._channels, _TILE, _TILE), np.float32))
            return
        if self._settled:
            return
        sample = np.random.default_rng(0).standard_normal((1, self._channels, 8, 8)).astype(np.float32)
        full, full_seconds = self._measure(sample)
        kept = copy.deepcopy([part.state_dict() for part in self._modules()])
        self._use_half()
        half, half_seconds = self._measure(sample)
        psnr = 10 * math.log10(4 / max(float(np.mean((full - half) ** 2)), 1e-12))
        log.info("float32 %.4f s, bfloat16 %.4f s, %.1f dB apart", full_seconds, half_seconds, psnr)
        if half_seconds > HALF_GAIN * full_seconds or psnr < HALF_PSNR:
            for part, state in zip(self._modules(), kept, strict=True):
                part.load_state_dict(state, assign=True)
                part.to(memory_format=torch.channels_last).requires_grad_(False)
            self.dtype = torch.float32

    def close(self) -> None:
        """Nothing to release besides memory, which goes with the object."""

    def _measure(self, sample: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """The picture of ``sample``, and the least seconds it took."""
        picture, taken = self(sample), []
        for _ in range(3):
            started = time.perf_counter()
            self(sample)
            taken.append(time.perf_counter() - started)
        return picture, min(taken)

    def _use_half(self) -> None:
        """Store what multiplies in bfloat16; norms stay float32, as autocast computes them."""
        for part in self._modules():
            for module in part.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(torch.bfloat16)
        self.dtype = torch.bfloat16

    def _modules(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self._model.codec.g_s, self._model.unet, self._model.vae


class _Clock:
    """Seconds between marks; on CUDA by events, which cost no waiting until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self.mark("")

    def mark(self, name: str) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """By name, each since the mark before; the device has finished."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._cuda:
            return {name: before.elapsed_time(now) / 1000 for (_, before), (name, now) in pairs}
        return {name: now - before for (_, before), (name, now) in pairs}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_folded(file: Any, model: PictureGenerator) -> bool:
    """Whether the bundle's weights are those of the folded network (aeic_nets.folding)."""
    return _PICTURE_ENTRY in file.keys() and (  # noqa: SIM118 - the file is no mapping
        file.get_slice(_PICTURE_ENTRY).get_shape()[1] != model.vae.decoder.conv_in.in_channels
    )
