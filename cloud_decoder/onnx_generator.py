"""The generator on ONNX Runtime: synthesis.onnx of the bundle, on the CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aeic.bundle import Bundle


class OnnxGenerator:
    """See :class:`cloud_decoder.generator.Generator`. ``threads`` 0 takes all cores."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self._session = bundle.session("synthesis", threads)

    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, M, h, w) float32 -> (N, 3, 32 h, 32 w) float32."""
        (image,) = self._session.run(["image"], {"y_hat": np.ascontiguousarray(y_hat)})
        return np.asarray(image, np.float32)
