"""The encoder's entropy model on a GPU, checked against the CPU: it is used until a check finds a difference.

The graph ``entropy_gpu.onnx`` of a bundle computes what ``entropy.onnx`` does, with float products of whole numbers
that stay below 2**24 (docs/determinism.md). It is exact on every device that multiplies in float32. What is checked
here is everything below it: a broken driver, a faulty GPU, a library that uses lower precision than it claims.

- A size of latents is encoded on the CPU when it comes for the first time. When it comes again, the GPU has to give the
  CPU's answers for two seeded latents and an extreme one.
- One in ``check_every`` frames is encoded on the CPU as well.

The graph is replayed as a CUDA graph for sizes that come often (resident_graph.py). The known answers of such a size
are given by its CUDA graph, and asked for again when it is captured again.

Where memory does not suffice for a size, the CPU encodes the frame, and no other size loses anything.

A sender of ever-new sizes gains nothing: checks are made for a fraction of the frames (CheckAllowance).

After the first difference, or an error that is not about memory, the CPU encodes everything, and ``reason`` says why.
A checked frame is coded from the CPU's result. The frames between two checks are coded from the GPU's: if it is faulty,
they may not decode. Their check value shows that in the cloud, which puts them into quarantine.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.entropy_model import EntropyModel, Indexes, Symbols
from aeic.errors import BundleError
from aeic.quantise import Floats, hyper_size, pad_latent
from aeic.runtime import cuda
from aeic.runtime.capture_gate import GATE
from aeic.runtime.device_check import (
    CHECK_EVERY,
    FRAMES_PER_CHECK,
    MOST_SIZES,
    CheckAllowance,
    Tally,
    lacks_memory,
)
from edge_encoder.encoding import EntropyChoice
from edge_encoder.encoding.execution_provider import open_exact
from edge_encoder.encoding.resident_graph import UNCAPTURED, GraphGone, ResidentGraph

log = logging.getLogger("aeic.edge.gpu_entropy")

GRAPH = "entropy_gpu.onnx"
OUTPUTS: dict[str, type[Any]] = {"symbols": np.int16, "indexes": np.int8, "y_hat": np.float32}
"""Of the graph; all have the shape of y."""
_REACH = (0.3, 6.0, 4000.0)
"""Amplitudes of the known latents; the last is beyond all clipping points of the first rounding."""

Result = tuple[Symbols, Indexes, Floats]
Size = tuple[int, int]


class GpuEntropy:
    """h_a and the four passes of one bundle on a GPU; safe to share between threads.

    Implements :class:`aeic.entropy_model.EntropyEncoderModel`.
    """

    def __init__(
        self,
        bundle: Bundle,
        hyper_analysis: onnxruntime.InferenceSession,
        entropy: ResidentGraph,
        *,
        threads: int = 0,
        check_every: int = CHECK_EVERY,
    ) -> None:
        """``threads`` of the CPU's graphs; ``check_every`` 0 checks no frame in service."""
        self._bundle, self._hyper_analysis, self._entropy = bundle, hyper_analysis, entropy
        self._exact = EntropyModel(bundle, threads)
        self._check_every, self._since_check = check_every, 0
        self._lock = threading.Lock()  # of everything below
        self._seen: Counter[Size] = Counter()
        self._trusted: OrderedDict[tuple[Size, int], None] = OrderedDict()  # with the number of the CUDA graph
        self._allowance = CheckAllowance()
        self._tally = Tally()
        self.reason = ""
        """Why the CPU has taken over; empty while the GPU is used."""

    def take_tally(self) -> Tally:
        """What happened since the last call."""
        with self._lock:
            taken, self._tally = self._tally, Tally()
        return taken

    def hyper_analysis(self, y: Floats) -> Floats:
        """h_a: y with its gain (M, h, w) to z (Cz, hz, wz) float32. Any z decodes, so only NaN is checked."""
        if not self.reason:
            found = self._hyper_on_gpu(pad_latent(y)[None])
            shape = (1, self._bundle.hyper_channels, *hyper_size(*y.shape[1:]))
            if found is not None and found[0].shape == shape and np.isfinite(found[0]).all():
                z: Floats = found[0][0]
                return z
            if found is not None:
                self._give_up("the hyper analysis gave numbers that are not finite")
        return self._exact.hyper_analysis(y)

    def quantise(self, y: Floats, z_symbols: NDArray[np.int32]) -> Result:
        """As :meth:`aeic.entropy_model.EntropyModel.quantise`, and equal to it bit for bit."""
        found = None
        if not self.reason:
            graph = self._entropy.place(_inputs(y, z_symbols))
            height, width = y.shape[1:]
            found = self._on_gpu(y, z_symbols, graph) if self._trusts((height, width), graph) else None
        due = False
        with self._lock:
            if found is not None and self._check_every:
                self._since_check += 1
                due = self._since_check >= self._check_every
                self._since_check = 0 if due else self._since_check
            self._tally.device += found is not None
            self._tally.cpu += found is None
            self._tally.checked += due
        if found is not None and not due:
            return found
        exact = self._exact.quantise(y, z_symbols)
        if found is not None and not _equal(found, exact):
            self._give_up("the latents of a frame differ from the CPU's")
        return exact

    def check(self, size: Size, graph: int = UNCAPTURED) -> bool:
        """Known answers for latents of ``size`` (h, w): two seeded latents and an extreme one.

        ``graph``: the CUDA graph that is to give them; it is captured if it has not been. False where the GPU lacks
        memory, where the graph is given up, and where its answers differ, which also ends the GPU's use.
        """
        rng = np.random.default_rng(11)
        for reach in _REACH:
            y = (rng.standard_normal((self._bundle.channels, *size)) * reach).astype(np.float32)
            limit = int(max(1, min(reach, 2000)))
            z = rng.integers(-limit, limit + 1, (self._bundle.hyper_channels, *hyper_size(*size))).astype(np.int32)
            found = self._on_gpu(y, z, graph)
            if found is None:
                return False
            if not _equal(found, self._exact.quantise(y, z)):
                self._give_up(f"known answers for latents of {size[1]}x{size[0]} differ")
                return False
        return True

    def _trusts(self, size: Size, graph: int) -> bool:
        """Whether the GPU is used for this size by this CUDA graph; a new one is checked when the size comes again."""
        key = size, graph
        with self._lock:
            if self.reason:
                return False
            self._allowance.earn()
            if key in self._trusted:
                self._trusted.move_to_end(key)
                return True
            self._seen[size] += 1
            due = self._seen[size] > 1 and self._allowance.take()
            if len(self._seen) > 4 * MOST_SIZES:
                self._seen = Counter(dict.fromkeys((known for known, _ in self._trusted), 2))
        if not due or not self.check(size, graph):
            return False
        with self._lock:
            self._trusted[key] = None
            if len(self._trusted) > MOST_SIZES:
                self._trusted.popitem(last=False)
        return True

    def _on_gpu(self, y: Floats, z_symbols: NDArray[np.int32], graph: int) -> Result | None:
        """The GPU's result; None if it fails, or has given the graph up."""
        inputs = _inputs(y, z_symbols)
        try:
            symbols, indexes, y_hat = (part[0] for part in self._entropy.run(inputs, graph))
        except GraphGone:
            return None
        except Exception as error:  # ONNX Runtime's own errors share no narrower base
            if not self._lacks_memory(error):
                return None
        else:
            return symbols, indexes, y_hat + np.float32(0)
        with self._lock:  # else its checks would take the allowance of the other sizes
            self._seen[y.shape[1], y.shape[2]] = 1 - FRAMES_PER_CHECK
        # Outside the handler, which may keep memory.
        self._shrink(lambda: self._entropy.make_room(inputs, _smallest(inputs)))
        return None

    def _hyper_on_gpu(self, y: NDArray[np.float32]) -> list[NDArray[Any]] | None:
        """The outputs; None if the GPU fails."""
        session, inputs = self._hyper_analysis, {"y": y}

        def run(given: dict[str, NDArray[Any]], options: onnxruntime.RunOptions | None = None) -> list[NDArray[Any]]:
            with GATE.run():
                outputs: list[NDArray[Any]] = session.run(None, given, options)
            return outputs

        try:
            return run(inputs)
        except Exception as error:  # ONNX Runtime's own errors share no narrower base
            if not self._lacks_memory(error):
                return None
        self._shrink(lambda: run(_smallest(inputs), cuda.shrinking()))
        return None

    def _lacks_memory(self, error: Exception) -> bool:
        """Whether the GPU lacked memory; any other error ends its use."""
        if not lacks_memory(error):
            self._give_up(f"the GPU failed ({error})", mismatch=False)
            return False
        what = str(error)  # a log's record would keep what the exception's traceback refers to
        log.warning("the entropy model does not fit into the GPU's memory, the CPU encodes this frame: %s", what)
        return True

    def _shrink(self, empty: Callable[[], object]) -> None:
        """Empty the session's arena on the GPU, which happens only after a run: of the smallest latents."""
        try:
            empty()
        except Exception as error:  # the next frame tries again, and shows whether the GPU still works
            log.warning("the GPU's memory could not be given back: %s", error)

    def _give_up(self, reason: str, *, mismatch: bool = True) -> None:
        with self._lock:
            self._tally.mismatches += mismatch
            self.reason = self.reason or reason
        log.error("entropy coding moves to the CPU: %s", reason)


def open_gpu_entropy(
    bundle: Bundle, choice: EntropyChoice, *, gpu: bool, threads: int, check_every: int, cuda_graphs: bool = False
) -> GpuEntropy | None:
    """A :class:`GpuEntropy`, or None where the CPU is to compute the entropy model.

    ``gpu``: the analysis runs on one. ``cuda_graphs``: capture sizes that come often, if ONNX Runtime can. BundleError
    if ``choice`` is ``device`` and the GPU cannot be used.
    """
    if choice == "cpu" or (choice == "auto" and not gpu):
        return None
    try:
        graph = bundle.auxiliary(GRAPH)
        if graph is None:
            raise BundleError(
                f"bundle {bundle.name} has no {GRAPH}: add it with python -m aeic_train.export.gpu_graphs"
            )
        hyper_analysis = open_exact(bundle.path / "hyper_analysis.onnx", threads)
        entropy = ResidentGraph(partial(open_exact, graph, threads), OUTPUTS, capture=cuda_graphs)
    except Exception as error:
        if choice == "device":
            raise BundleError(
                f"the entropy model cannot run on the GPU ({error}); set AEIC_EDGE_ENTROPY=cpu"
            ) from error
        log.info("the entropy model stays on the CPU: %s", error)
        return None
    return GpuEntropy(bundle, hyper_analysis, entropy, threads=threads, check_every=check_every)


def _inputs(y: Floats, z_symbols: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    return {"y": y[None], "z_symbols": z_symbols[None]}


def _smallest(inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs for the smallest latents."""
    sides = {"y": (4, 4), "z_symbols": hyper_size(4, 4)}
    return {name: np.zeros((*given.shape[:2], *sides[name]), given.dtype) for name, given in inputs.items()}


def _equal(one: Result, other: Result) -> bool:
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = list(zip(one, other, strict=True))
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)
