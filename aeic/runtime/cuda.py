"""ONNX Runtime on NVIDIA GPUs: options that avoid known problems. Not yet run on a GPU (docs/how-to/gpu.md).

This module opens no session itself. The code that opens one must check which provider it got and test its output.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import onnxruntime

from aeic.errors import BundleError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
CUDA_OPTIONS = {
    # EXHAUSTIVE costs over half a second for every new size, DEFAULT may pick a path fifty times slower.
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
    "gpu_mem_limit": str(4 << 30),  # four encodes of 1920x1088 at once
    "use_tf32": "0",
}
UNCAPTURED = -1
"""The number of a CUDA graph that stands for a run without: ONNX Runtime neither captures nor replays."""
_GRAPH_ID = "gpu_graph_id"
_EMULATION = "CUBLAS_EMULATE_SINGLE_PRECISION"
_TF32 = "NVIDIA_TF32_OVERRIDE"
_LARGEST_SIDE = 2048


def prepare() -> None:
    """Before the first session: no TF32 in the libraries below, and their files loaded from the wheels.

    ``use_tf32`` 0 alone is not enough: a convolution that finds no engine is tried again with TF32. ``BundleError`` if
    the environment asks for float32 that is emulated.
    """
    if os.environ.get(_EMULATION, "0") != "0":
        raise BundleError(f"{_EMULATION} is set: its float32 is not exact, unset it")
    os.environ.setdefault(_TF32, "0")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


@functools.cache
def shrinking() -> onnxruntime.RunOptions:
    """Options of a run on a GPU after which the session's arena there gives back what it does not use.

    It never does so by itself, and never joins two of its blocks: pictures of growing sizes would fill it up to
    ``gpu_mem_limit``, and every larger one would fail from then on.
    """
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "gpu:0")
    options.add_run_config_entry(_GRAPH_ID, str(UNCAPTURED))
    return options


@functools.lru_cache(maxsize=64)
def graph_options(graph: int) -> onnxruntime.RunOptions:
    """Options of a run that captures the CUDA graph of this number, or replays it once it has been captured.

    Without them, a session with the providers of :func:`capturing` takes number 0.
    """
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(_GRAPH_ID, str(graph))
    return options


def tensorrt_options(graph: Path, input_name: str, cache: Path, channels_last: bool = False) -> dict[str, Any]:
    """For a graph with one picture (1, 3, H, W), or (1, H, W, 3), as input: one engine for all sizes, in ``cache``.

    The folder's name has the digest of the graph and the version of ONNX Runtime in it: an engine is otherwise taken
    again for another graph of the same name. The folder is created if it is missing; ``OSError`` if that fails.
    """
    digest = hashlib.sha256(graph.read_bytes()).hexdigest()[:16]
    folder = cache / f"{digest}-{onnxruntime.__version__}"
    folder.mkdir(parents=True, exist_ok=True)  # TensorRT makes no folder inside another one that is missing
    sides = {"min": 64, "opt": 512, "max": _LARGEST_SIDE}
    shape = "1x{0}x{0}x3" if channels_last else "1x3x{0}x{0}"
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_max_workspace_size": str(512 << 20),
        "trt_builder_optimization_level": "3",
    } | {f"trt_profile_{kind}_shapes": f"{input_name}:{shape.format(side)}" for kind, side in sides.items()}


def capturing() -> list[Any]:
    """The list of providers for a session on CUDA that captures CUDA graphs (:func:`graph_options`).

    It cannot be opened if a node other than those that compute shapes has no CUDA kernel.
    """
    return [(CUDA, CUDA_OPTIONS | {"enable_cuda_graph": "1"}), CPU]


def providers(wanted: str, graph: Path, input_name: str, cache: Path, channels_last: bool = False) -> list[Any]:
    """The list for ``onnxruntime.InferenceSession``; ``wanted`` is ``cpu``, ``cuda`` or ``tensorrt``.

    Only ``tensorrt`` reads the graph and makes a folder in ``cache``.
    """
    if wanted == "cpu":
        return [CPU]
    fallbacks: list[Any] = [(CUDA, CUDA_OPTIONS), CPU]
    if wanted == "cuda":
        return fallbacks
    return [(TENSORRT, tensorrt_options(graph, input_name, cache, channels_last)), *fallbacks]
