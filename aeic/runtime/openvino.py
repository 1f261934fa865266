"""A float graph on OpenVINO, for x86 processors: the interface of an ONNX Runtime session, as far as we use it.

With AMX or AVX512-BF16 it computes in bfloat16, some four times as fast as float32. It must not run the entropy model
(docs/determinism.md), but only graphs that the encoder alone runs, such as the analysis.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeic.errors import BundleError, remedy

AVAILABLE: bool = importlib.util.find_spec("openvino") is not None
"""Whether OpenVINO can be imported here."""
PROVIDER = "OpenVINO"


@dataclass(frozen=True)
class Input:
    """The name of an input."""

    name: str


class OpenVinoSession:
    """One graph, any sizes. Safe to share between threads: each call uses a separate request."""

    def __init__(self, path: Path, threads: int = 0, precision: str = "auto") -> None:
        """``threads`` 0 uses all cores. ``precision``: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the
        processor multiplies it. ``BundleError`` where OpenVINO is missing or cannot read the graph."""
        if not AVAILABLE:
            raise BundleError(f"OpenVINO is not installed: {remedy('openvino')}")
        openvino: Any = importlib.import_module("openvino")
        core = openvino.Core()
        if precision == "auto":
            known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            precision = "bfloat16" if "BF16" in known else "float32"
        self.precision = precision
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = core.compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            raise BundleError(f"{path.name} cannot be loaded by OpenVINO ({error}): fetch the bundle again") from error
        self._requests: LifoQueue[Any] = LifoQueue()

    def get_inputs(self) -> list[Input]:
        """The inputs in order."""
        return [Input(port.get_any_name()) for port in self._model.inputs]

    def get_providers(self) -> list[str]:
        """The execution provider."""
        return [PROVIDER]

    def run(self, names: object, feeds: dict[str, NDArray[Any]], options: object = None) -> list[NDArray[Any]]:
        """All outputs for ``feeds``; the other arguments are those of ONNX Runtime and have no effect."""
        try:
            request = self._requests.get_nowait()
        except Empty:
            request = self._model.create_infer_request()
        try:
            found = request.infer({k: np.ascontiguousarray(v) for k, v in feeds.items()}, share_inputs=True)
            return [np.array(found[port]) for port in self._model.outputs]  # copies: the request is used again
        finally:
            self._requests.put(request)
