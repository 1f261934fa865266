"""The generator on OpenVINO: synthesis.onnx of the bundle, on x86 processors. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aeic.runtime.openvino import OpenVinoSession
from cloud_decoder.inference.backend import GeneratorBackend


class OpenVinoGenerator(GeneratorBackend):
    """See :class:`~cloud_decoder.inference.backend.GeneratorBackend`. ``threads`` 0 uses all cores.

    It computes in bfloat16 if the processor supports it, else in float32. ``BundleError`` if OpenVINO is missing or
    cannot read the graph.
    """

    def __init__(self, bundle: Path, threads: int = 0) -> None:
        self._session = OpenVinoSession(bundle / "synthesis.onnx", threads)

    @property
    def runtime(self) -> str:
        """The runtime and what it multiplies in."""
        return f"openvino {self._session.precision}"

    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, M, h, w) float32 -> (N, 3, 32 h, 32 w) float32."""
        return np.asarray(self._session.run(None, {"y_hat": y_hat})[0], np.float32)
