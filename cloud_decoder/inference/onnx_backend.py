"""The generator on ONNX Runtime: synthesis.onnx of the bundle, on the CPU. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aeic.errors import BundleError
from aeic.profiles import LATENT_STRIDE
from aeic.runtime import memory
from aeic_service import malloc
from cloud_decoder.inference.backend import GeneratorBackend
from cloud_decoder.tiling import WHOLE_PIXELS

_PIXEL_BYTES = 330
"""Memory of a run for one pixel of its pictures, measured with the model that ships."""
_SMALLEST = 2
"""Side of the smallest latents that the graph takes."""


class OnnxGenerator(GeneratorBackend):
    """See :class:`~cloud_decoder.inference.backend.GeneratorBackend`. ``threads`` 0 uses all cores."""

    def __init__(self, bundle: Path, threads: int = 0) -> None:
        options = memory.session_options(threads)
        path = bundle / "synthesis.onnx"
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors share no narrower base
            raise BundleError(f"{path} cannot be loaded ({error}): fetch the bundle again") from error

    @property
    def runtime(self) -> str:
        """The runtime and what it multiplies in."""
        return "onnxruntime float32"

    @property
    def channels(self) -> int:
        """M, of its input (N, M, h, w)."""
        return int(self._session.get_inputs()[0].shape[1])

    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, M, h, w) float32 -> (N, 3, 32 h, 32 w) float32."""
        pixels = y_hat[:, 0].size * LATENT_STRIDE**2
        if pixels > WHOLE_PIXELS:
            return self._run(y_hat, memory.shrinking())
        memory.prepare(pixels * _PIXEL_BYTES, self._run_smallest)
        return self._run(y_hat)

    def release(self) -> None:
        """Return the memory that is kept for the next call."""
        self._run_smallest(memory.shrinking())
        malloc.trim()

    def _run_smallest(self, options: onnxruntime.RunOptions) -> None:
        self._run(np.zeros((1, self.channels, _SMALLEST, _SMALLEST), np.float32), options)

    def _run(self, y_hat: NDArray[np.float32], options: onnxruntime.RunOptions | None = None) -> NDArray[np.float32]:
        (image,) = self._session.run(["image"], {"y_hat": np.ascontiguousarray(y_hat)}, options)
        return np.asarray(image, np.float32)
