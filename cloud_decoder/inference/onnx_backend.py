"""The generator on ONNX Runtime: synthesis.onnx of the bundle, on the CPU. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aeic.errors import BundleError


class OnnxGenerator:
    """See :class:`cloud_decoder.inference.backend.Generator`. ``threads`` 0 takes all cores."""

    def __init__(self, bundle: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # A plan of memory blocks for every shape met is never given back; batches come in many shapes.
        options.enable_mem_pattern = False
        # Threads that spin between batches take the cores from entropy decoding and from the files being written.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = bundle / "synthesis.onnx"
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors share no narrower base
            raise BundleError(f"{path} cannot be loaded ({error}): fetch the bundle again") from error
        self._run_options = onnxruntime.RunOptions()
        # The arena otherwise keeps the largest batch's memory for ever, and adds to it for the next larger one.
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, M, h, w) float32 -> (N, 3, 32 h, 32 w) float32."""
        (image,) = self._session.run(["image"], {"y_hat": np.ascontiguousarray(y_hat)}, self._run_options)
        return np.asarray(image, np.float32)
