"""y_hat to pictures on torch: what the cloud runs on a GPU. Knows no bitstream and no queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from aeic import profiles
from aeic.errors import BundleError
from aeic_nets import memory
from aeic_nets.network import AEIC
from aeic_nets.official.fold import shrink
from aeic_nets.precision import best_dtype, stored

_PARTS = ("codec.g_s.", "unet.", "vae.")
_AT_ONCE = 32  # tensors
_PICTURE_ENTRY = "vae.decoder.conv_in.weight"


class TorchGenerator:
    """The synthesis of a bundle on one device; calls are not concurrent (one owner thread).

    On CUDA it computes in bfloat16, channels last. On the CPU in float32, the same numbers as the ONNX graph; but the
    published sizes, which have no such graph, in bfloat16 where the processor is faster at it (aeic_nets.precision):
    a fraction of the time and half the memory. CUDA has not been run on a card yet.
    """

    def __init__(self, bundle_path: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        """Loads g_s, UNet and picture decoder from ``bundle_path``; ``BundleError`` if the weights do not fit.

        ``dtype`` float32 or bfloat16 instead of what would be chosen.
        """
        folder = Path(bundle_path)
        manifest = json.loads((folder / "bundle.json").read_text())
        self.device = torch.device(device)
        with torch.device("meta"):
            self._model = AEIC(profiles.profile(manifest["profile"]))
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
        large = self.device.type == "cuda" or not (folder / "synthesis.onnx").exists()
        self.dtype = dtype or (best_dtype(self.device) if large else torch.float32)
        names = sorted(wanted)
        for start in range(0, len(names), _AT_ONCE):
            # Opened anew each time: the file's pages count as ours for as long as it is open.
            with safe_open(folder / "weights.safetensors", "pt") as file:
                tensors = {
                    name: stored(name, self._model, file.get_tensor(name), self.dtype).to(self.device)
                    for name in names[start : start + _AT_ONCE]
                }
            self._model.load_state_dict(tensors, strict=False, assign=True)
        for part in (self._model.codec.g_s, self._model.unet, self._model.vae):
            part.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """y_hat (N, M, h, w) float32, gain undone, to pictures (N, 3, 32h, 32w) float32 in [-1, 1].

        ``MemoryError`` before anything is computed if the device has not the memory for it (aeic_nets.memory).
        """
        memory.check(self._model.profile, len(y_hat), y_hat.shape[2], y_hat.shape[3], self.device)
        values = torch.from_numpy(y_hat).to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            pictures = self._model.generate(values)
        result: NDArray[Any] = pictures.float().clamp(-1, 1).cpu().numpy()
        return result


def _is_folded(file: Any, model: AEIC) -> bool:
    """Whether the bundle's weights are those of the folded network (aeic_nets.official.fold)."""
    return _PICTURE_ENTRY in file.keys() and (  # noqa: SIM118 - the file is no mapping
        file.get_slice(_PICTURE_ENTRY).get_shape()[1] != model.vae.decoder.conv_in.in_channels
    )
