"""y_hat to pictures on torch: what the cloud runs on a GPU. Knows no bitstream and no queue."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from aeic import profiles
from aeic.errors import BundleError
from aeic.profiles import LATENT_STRIDE
from aeic.runtime.device_check import lacks_memory
from aeic.runtime.processor import usable_cores
from aeic_nets.folding import shrink
from aeic_nets.runtime import memory_plan
from aeic_nets.runtime.cuda_device import Clock, CudaDevice
from aeic_nets.runtime.cuda_graphs import AGAIN, Graphed
from aeic_nets.runtime.pinned_output import PinnedOutput, plain
from aeic_nets.runtime.precision import best_dtype, cuda_dtype, stored
from aeic_nets.synthesis import PictureGenerator
from aeic_nets.tiling import UNET_TILES, blend_tiles, decode_tiled
from aeic_nets.vae import PictureDecoder

log = logging.getLogger(__name__)

HALF_GAIN = 0.9
HALF_PSNR = 35.0
"""What bfloat16 must bring on a CPU: at most this share of float32's time, at least this many dB beside its picture."""
TILE = 32
"""Latents; the side of the pictures that warm a GPU up."""
_PARTS = ("codec.g_s.", "unet.", "vae.")
_AT_ONCE = 32  # tensors
_PICTURE_ENTRY = "vae.decoder.conv_in.weight"


class TorchGenerator:
    """The synthesis of a bundle on one device; calls are not concurrent (one owner thread).

    On a GPU it computes in bfloat16, or in float16 if the GPU has no bfloat16 (precision.py), channels last. The
    whole synthesis is one CUDA graph for each shape that comes again, and batches are padded to a power of two so that
    few shapes occur. CUDA has not been run on a GPU yet.

    On the CPU it computes in float32, the same numbers as the ONNX graph, unless :meth:`warm_up` finds bfloat16 faster.
    The published sizes, which have no such graph, are loaded in bfloat16 where the processor is faster at it: a
    fraction of the time and half the memory.

    Pictures with values that are not finite are computed again in float32; if that does not help either, the call
    raises ``FloatingPointError``.
    """

    def __init__(
        self,
        bundle_path: str | Path,
        device: str = "cpu",
        threads: int = 0,
        dtype: torch.dtype | None = None,
        gpu: CudaDevice | None = None,
        *,
        official_tiling: bool = False,
    ) -> None:
        """Loads g_s, UNet and picture decoder from ``bundle_path``; ``BundleError`` if the weights do not fit.

        ``threads`` of torch on the CPU, for the whole process; 0 takes all cores that the process may use. ``dtype``
        instead of what would be chosen. ``gpu`` stands for the CUDA device, in tests. ``official_tiling``: large
        pictures are decoded as the research code does (aeic_nets/tiling.py); ``BundleError`` for a profile of our own.
        """
        folder = Path(bundle_path)
        manifest = json.loads((folder / "bundle.json").read_text())
        self.device = torch.device(device)
        self._gpu = gpu or (CudaDevice(self.device) if self.device.type == "cuda" else None)
        if self.device.type == "cpu":  # torch itself counts the machine's cores; more threads than ours wait spinning
            torch.set_num_threads(threads or usable_cores())
        self._tiles = UNET_TILES.get(manifest["profile"]) if official_tiling else None
        if official_tiling and self._tiles is None:
            raise BundleError(
                f"profile {manifest['profile']} has no official tiling: it is for {', '.join(UNET_TILES)}"
            )
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
        self._settled = dtype is not None or self._gpu is not None or not (folder / "synthesis.onnx").exists()
        chosen = cuda_dtype(self._gpu.capability) if self._gpu else None
        self.dtype = dtype or chosen or (best_dtype(self.device) if self._settled else torch.float32)
        names = sorted(wanted)
        for start in range(0, len(names), _AT_ONCE):
            # Reopened each time: the file's pages count as ours for as long as it is open.
            with safe_open(folder / "weights.safetensors", "pt") as file:
                tensors = {
                    name: stored(name, self._model, file.get_tensor(name), self.dtype).to(self.device)
                    for name in names[start : start + _AT_ONCE]
                }
            self._model.load_state_dict(tensors, strict=False, assign=True)
        self.parts: dict[str, float] = {}
        self.recomputed = self._recomputed_since = 0
        self._channels = self._model.profile.latent_channels
        for part in self._modules():
            part.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        # A CUDA graph of all tiles would be as large as the picture.
        self._graphed = Graphed(self._synthesise, self._gpu.recorder()) if self._gpu and not self._tiles else None
        self._fetch = PinnedOutput(self._gpu.copier()).start if self._gpu else plain

    @torch.inference_mode()
    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """y_hat (N, M, h, w) float32, gain undone, to pictures (N, 3, 32h, 32w) float32 in [-1, 1].

        ``MemoryError`` before anything is computed if the device has not the memory for it (memory_plan.py).
        """
        with self._on_device():
            made, clock = self._generate(y_hat)
            result: NDArray[Any] = made.clamp(-1, 1).cpu().numpy()
            self.parts = clock.seconds()
            return result

    def pictures(self, y_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The same as (N, 32h, 32w, 3) uint8, rounded on the device: a quarter of the bytes to fetch from it.

        On a GPU the result is valid until the next call but one.
        """
        return self.start(y_hat, whole=True)()

    @torch.inference_mode()
    def start(self, y_hat: NDArray[np.float32], *, whole: bool) -> Callable[[], NDArray[Any]]:
        """Compute :meth:`pictures` if ``whole``, else what a call gives; the result waits for the copy to the host.

        On a GPU the copy runs beside the next batch (pinned_output.py), and the array is valid until the next batch but
        one begins.
        """
        with self._on_device():
            made, clock = self._generate(y_hat)
            if whole:
                levels = (made * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
                fetched = self._fetch(levels.permute(0, 2, 3, 1).contiguous())
            else:
                fetched = self._fetch(made.clamp(-1, 1).contiguous())
            self.parts = clock.seconds()  # the check for finite values has waited for the synthesis
            return fetched

    @property
    def overlaps(self) -> bool:
        """Whether another batch may be started before the result of one is taken: on a GPU."""
        return self._gpu is not None

    def _generate(self, y_hat: NDArray[np.float32]) -> tuple[torch.Tensor, Clock]:
        count, self.recomputed = len(y_hat), 0
        height, width = y_hat.shape[2:]
        if self._tiles:  # the UNet works at an eighth of the picture, four samples for one latent
            height, width = (min(side, self._tiles[0] // 4) for side in (height, width))
        memory_plan.check(self._model.profile, count, height, width, self.device)
        padded = self._padded(y_hat) if self._gpu else y_hat
        values = torch.from_numpy(padded).to(self.device, memory_format=torch.channels_last)
        clock = Clock(self._gpu)
        measured = partial(self._synthesise, clock=clock)
        graphed = partial(self._graphed, values, measured) if self._graphed else partial(measured, values)
        pictures = self._with_room(graphed)[:count]
        finite = torch.isfinite(pictures).flatten(1).all(1)
        if not finite.all():
            rows = torch.nonzero(~finite).flatten().tolist()
            log.warning("%d of %d pictures are not finite in %s", len(rows), count, self.dtype)
            self.recomputed = len(rows)
            self._recomputed_since += len(rows)
            pictures = pictures.clone()  # a graph's result goes with the graph
            pictures = self._with_room(partial(self._again_in_float32, values, pictures, rows))
        return pictures, clock

    def _with_room(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """``work()``; if it lacks memory, once more without the CUDA graphs, which give theirs back."""
        try:
            return work()
        except RuntimeError as error:  # cuBLAS and cuDNN have no class of their own for it
            if not lacks_memory(error) or not self._graphed or not self._graphed.shapes:
                raise
        # Outside the handler, whose exception keeps tensors alive.
        log.warning("out of memory on %s: CUDA graphs are dropped", self.device)
        assert self._graphed is not None and self._gpu is not None
        self._graphed.forget()
        self._gpu.release()
        return work()

    def _padded(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """The batch with its first row repeated up to a power of two, if that fits into the memory."""
        count = len(y_hat)
        bucket = 1 << (count - 1).bit_length()
        if bucket == count:
            return y_hat
        room = memory_plan.capacity(self._model.profile, self.device)
        if room is not None and bucket * y_hat.shape[2] * y_hat.shape[3] * LATENT_STRIDE**2 > room:
            return y_hat
        return np.concatenate([y_hat, np.repeat(y_hat[:1], bucket - count, 0)])

    def _synthesise(self, values: torch.Tensor, clock: Clock | None = None) -> torch.Tensor:
        """Pictures (N, 3, 32h, 32w) float32, not clamped."""
        g_s, unet, vae = self._modules()
        mark = clock.mark if clock else lambda name: None
        with torch.autocast(
            self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False
        ):  # a cached copy of a weight would not outlive the recording of a graph
            latent, residual = g_s(values)
            mark("g_s")
            features = (blend_tiles(unet, latent, *self._tiles) if self._tiles else unet(latent)) + residual
            mark("unet")
            pictures: torch.Tensor = decode_tiled(vae.decoder, features) if self._tiles else vae(features)
            mark("vae")
        return pictures.float()

    def _again_in_float32(self, values: torch.Tensor, pictures: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """``pictures``, with these rows replaced by float32. ``FloatingPointError`` if one is still not finite."""
        if self.dtype != torch.float32 and not self._tiles:
            for row in rows:
                latent, residual = _in_float32(self._model.codec.g_s, values[row : row + 1])
                features = _in_float32(self._model.unet, latent) + residual
                pictures[row : row + 1] = _in_float32(self._model.vae, features)
        if not torch.isfinite(pictures[rows]).all():
            raise FloatingPointError("the synthesis gave values that are not finite, in float32 too")
        return pictures

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
        """Bytes that torch holds on the GPU; empty on a CPU."""
        return self._gpu.memory if self._gpu else {}

    @property
    def usable(self) -> bool:
        """False once the GPU has failed in a way that every later call of this process would meet."""
        try:
            if self._gpu:
                self._gpu.synchronise()
        except RuntimeError as error:
            log.error("%s has failed: %s", self.device, error)
            return False
        return True

    def take_counts(self) -> dict[str, int]:
        """``recomputed``: pictures that were computed again in float32 since the last call."""
        taken, self._recomputed_since = self._recomputed_since, 0
        return {"recomputed": taken}

    def warm_up(self, max_batch: int, max_pixels: int | None = None) -> int | None:
        """On a GPU: run tiles alone and in every padded batch that both limits admit. Returns the pixels of the
        largest batch that its memory takes; None if unknown.

        On the CPU: choose the dtype by measurement. bfloat16 is used if it is faster by a tenth at least and its
        picture within ``HALF_PSNR`` of float32's. None is returned.
        """
        if self._gpu:
            return self._warm_up_card(max_batch, max_pixels)
        if self._settled:
            return None
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
        return None

    def _warm_up_card(self, max_batch: int, max_pixels: int | None) -> int | None:
        tile, count = (TILE * LATENT_STRIDE) ** 2, 1
        room = memory_plan.capacity(self._model.profile, self.device)
        largest = min((limit for limit in (max_pixels, room) if limit is not None), default=max_batch * tile)
        while count <= max_batch and count * tile <= largest:
            try:
                for _ in range(AGAIN):
                    self.pictures(np.zeros((count, self._channels, TILE, TILE), np.float32))
            except (MemoryError, torch.OutOfMemoryError) as error:
                log.warning("no memory for %d pictures of %d pixels on %s (%s)", count, tile, self.device, error)
                return max(1, min(largest, count // 2 * tile))
            count *= 2
        if largest < tile:
            log.warning("%s has memory for %d pixels at once: larger pictures are refused", self.device, largest)
        return room and max(1, room)

    def release(self) -> None:
        """Nothing: on a GPU the graphs that are recorded keep their memory, and on a CPU nothing is kept."""

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

    def _on_device(self) -> AbstractContextManager[Any]:
        return self._gpu.current() if self._gpu else nullcontext()

    def _modules(self) -> tuple[nn.Module, nn.Module, PictureDecoder]:
        return self._model.codec.g_s, self._model.unet, self._model.vae


def _in_float32(part: nn.Module, *inputs: torch.Tensor) -> Any:
    """``part`` with its parameters widened for this call; those that it keeps stay where they are, for its graphs."""
    wide = {name: parameter.float() for name, parameter in part.named_parameters()}
    return torch.func.functional_call(part, wide, tuple(value.float() for value in inputs))


def _is_folded(file: Any, model: PictureGenerator) -> bool:
    """Whether the bundle's weights are those of the folded network (aeic_nets.folding)."""
    return _PICTURE_ENTRY in file.keys() and (  # noqa: SIM118 - the file is no mapping
        file.get_slice(_PICTURE_ENTRY).get_shape()[1] != model.vae.decoder.conv_in.in_channels
    )
