"""Chooses what runs the analysis, an ONNX Runtime execution provider or OpenVINO, and verifies that it works.

The list of available providers is not enough: when a CUDA library is missing, ONNX Runtime logs a line and returns a
CPU session. So the session is opened, its actual provider is read back, and its output for a known picture is compared
with the CPU's. What drives the entropy coder runs on the CPU, or on a GPU by graphs that are exact there
(gpu_entropy.py).
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aeic.errors import BundleError
from aeic.pixels import to_tensor
from aeic.runtime import cuda, memory, openvino
from aeic.runtime.capture_gate import GATE
from aeic.runtime.driver import edge_runtime_remedy, nvidia_driver
from aeic.runtime.fastest import Run, choose
from aeic.runtime.openvino import OpenVinoSession
from aeic.runtime.processor import multiplies_bfloat16
from edge_encoder.encoding import ProviderChoice

log = logging.getLogger("aeic.edge.provider")

CPU, _CUDA, _TENSORRT = cuda.CPU, cuda.CUDA, cuda.TENSORRT
PART_PROVIDERS = (CPU, openvino.PROVIDER)
"""Where large pictures are analysed in parts; a GPU takes large tiles instead."""
# y is rounded to integers after a gain; an error this small changes few of them, and never correctness.
_TOLERANCE = 0.02
_BYTES = "tensor(uint8)"
_HEAVY = {"Clip", "Conv", "DepthToSpace", "Floor", "Gelu", "MatMul", "Pad", "ReduceSum", "Round", "Sqrt"}
"""Operators of our graphs that compute no shapes."""
Session: TypeAlias = "onnxruntime.InferenceSession | OpenVinoSession"


def open_session(path: Path, choice: ProviderChoice, threads: int, half: Path | None = None) -> tuple[Session, str]:
    """The session of the graph at `path`, and the name of the provider it uses.

    `auto` takes CUDA when it is available and passes the known-answer test. Otherwise it takes the CPU: by OpenVINO
    if that is installed, the processor supports bfloat16, and it is measured to be faster; else by ONNX Runtime.
    When a provider named explicitly does not work, the BundleError says what is missing. On a GPU the float16 graph
    `half` is used if it is given and passes the test too.
    """
    _refuse_two_runtimes()
    cpu = _session(path, [CPU], threads)
    if choice == "cpu":
        return cpu, CPU
    if choice == "auto" and _CUDA not in onnxruntime.get_available_providers():
        if sign := nvidia_driver():
            log.warning(
                "analysis runs on the CPU: there is an NVIDIA driver (%s), but this ONNX Runtime has no CUDA;"
                " `aeic doctor` names the remedy, AEIC_EDGE_PROVIDER=cpu silences this",
                sign,
            )
        return _on_the_cpu(path, threads, cpu)
    if choice == "openvino":
        quick = OpenVinoSession(path, threads)
        if problem := _difference(analyse(quick, _known_picture()), analyse(cpu, _known_picture())):
            raise BundleError(f"provider openvino does not work here ({problem}); set AEIC_EDGE_PROVIDER=cpu")
        return quick, quick.get_providers()[0]
    wanted = "cuda" if choice == "auto" else choice
    first = _TENSORRT if wanted == "tensorrt" else _CUDA
    try:
        if first not in onnxruntime.get_available_providers():
            raise BundleError(f"this build of ONNX Runtime has no {first}")
        cuda.prepare()
        if half is not None:
            try:
                return _accelerated(half, wanted, first, threads, cpu), first
            except Exception as error:
                log.warning("the float16 analysis is not used: %s", error)
        return _accelerated(path, wanted, first, threads, cpu), first
    except Exception as error:
        if choice == "auto":
            log.warning("analysis runs on the CPU: %s", error)
            return _on_the_cpu(path, threads, cpu)
        remedy = "install TensorRT's libraries" if choice == "tensorrt" else edge_runtime_remedy()
        raise BundleError(
            f"provider {choice} does not work here ({error}); {remedy}, or set AEIC_EDGE_PROVIDER=cpu"
        ) from error


def open_part(path: Path, provider: str, threads: int) -> Session:
    """The session of a part of the analysis, on one of `PART_PROVIDERS`, which the whole analysis has tested."""
    return _session(path, [CPU], threads) if provider == CPU else OpenVinoSession(path, threads)


def open_exact(path: Path, threads: int, capture: bool = False) -> onnxruntime.InferenceSession:
    """The session of a graph on CUDA, never on TensorRT, whose engines change the order and type of sums.

    `capture`: runs are captured as CUDA graphs. BundleError if CUDA cannot be used, or cannot capture.
    """
    cuda.prepare()
    session = _session(path, cuda.capturing() if capture else cuda.providers("cuda", path, "", Path()), threads)
    if session.get_providers()[0] != _CUDA:
        raise BundleError(f"ONNX Runtime gave {session.get_providers()[0]} instead of {_CUDA}")
    if slow := _computed_on_the_cpu(session):
        log.warning("%s: ONNX Runtime runs %s on the CPU, which costs extra copies", path.name, ", ".join(slow))
    return session


def _computed_on_the_cpu(session: onnxruntime.InferenceSession) -> list[str]:
    """Operators with tensors of the picture that are not on the GPU. Shapes are computed on the CPU, which is right."""
    assigned: list[Any] = getattr(session, "get_provider_graph_assignment_info", list)()
    parts = [part for part in assigned if part.ep_name == CPU]
    return sorted({node.op_type for part in parts for node in part.get_nodes()} & _HEAVY)


def _accelerated(
    path: Path, wanted: str, first: str, threads: int, cpu: onnxruntime.InferenceSession
) -> onnxruntime.InferenceSession:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aeic" / "tensorrt"
    given = _session(path, [CPU], 1).get_inputs()[0]  # the float16 graph has another input than the float32 one
    session = _session(path, cuda.providers(wanted, path, given.name, cache, given.type == _BYTES), threads)
    if session.get_providers()[0] != first:
        raise BundleError(f"ONNX Runtime gave {session.get_providers()[0]} instead of {first}")
    if problem := _difference(analyse(session, _known_picture()), analyse(cpu, _known_picture())):
        raise BundleError(problem)
    return session


def _on_the_cpu(path: Path, threads: int, cpu: onnxruntime.InferenceSession) -> tuple[Session, str]:
    """The faster one of `cpu` and OpenVINO; `cpu` where OpenVINO is absent or the processor lacks bfloat16."""
    if not (multiplies_bfloat16() and openvino.AVAILABLE):
        return cpu, CPU
    sessions: dict[str, Session] = {CPU: cpu}

    def load() -> Run:
        session = sessions[openvino.PROVIDER] = OpenVinoSession(path, threads)
        return functools.partial(run_bound, session)

    candidates: dict[str, Callable[[], Run]] = {
        CPU: lambda: functools.partial(run_bound, cpu),
        openvino.PROVIDER: load,
    }
    name = choose(candidates, to_tensor(_known_picture()), _difference).name
    return sessions[name], name


def takes_bytes(session: Session) -> bool:
    """Whether the analysis takes pictures as (1, H, W, 3) uint8, and not as (1, 3, H, W) float32."""
    return getattr(session.get_inputs()[0], "type", "") == _BYTES


def analyse(session: Session, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """y (1, M, h, w) of a whole picture (H, W, 3)."""
    return run_bound(session, rgb[None] if takes_bytes(session) else to_tensor(rgb))


def run_bound(
    session: Session, image: NDArray[Any], options: onnxruntime.RunOptions | None = None
) -> NDArray[np.float32]:
    """Runs the graph with input and output bound, so that a GPU run copies each exactly once."""
    if isinstance(session, OpenVinoSession):
        return session.run(None, {session.get_inputs()[0].name: image})[0]
    with nullcontext() if session.get_providers()[0] == CPU else GATE.run():
        binding = session.io_binding()
        binding.bind_cpu_input(session.get_inputs()[0].name, image)
        binding.bind_output(session.get_outputs()[0].name)
        session.run_with_iobinding(binding, options)
        result: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
    return result


def _session(path: Path, providers: list[Any], threads: int) -> onnxruntime.InferenceSession:
    options = memory.session_options(threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        with nullcontext() if providers == [CPU] else GATE.run():  # on a GPU it allocates its weights
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's own errors share no narrower base
        raise BundleError(f"{path.name} cannot be loaded ({error}): fetch the bundle again") from error
    session.disable_fallback()
    return session


def _known_picture() -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (128, 192, 3), np.uint8)


def _difference(got: NDArray[np.float32], want: NDArray[np.float32]) -> str | None:
    """None, or how far `got` is from the CPU's output for the known picture."""
    scale = float(np.abs(want).max()) or 1.0
    worst = float(np.abs(got - want).max()) / scale
    return (
        None if worst <= _TOLERANCE else f"its output for a known picture deviates by {worst:.3g} of the largest value"
    )


def _refuse_two_runtimes() -> None:
    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            importlib.metadata.version(name)
            installed.append(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(installed) > 1:
        raise BundleError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files;"
            " uninstall both, then install the edge-cpu or the edge-gpu extra"
        )
