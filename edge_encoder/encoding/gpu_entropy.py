"""The encoder's entropy model on a GPU, checked against the CPU: its numbers are used only while they are the same.

The graph ``entropy_gpu.onnx`` of a bundle computes what ``entropy.onnx`` does, with float products of whole numbers
that stay below 2**24 (docs/determinism.md). It is exact on every device that multiplies in float32. What is checked
here is everything below it: a broken driver, a faulty GPU, a library that uses lower precision than it claims.

- A size of latents is encoded on the CPU when it comes for the first time. When it comes again, the GPU has to give the
  CPU's answers for two seeded latents and an extreme one.
- One in ``check_every`` frames is encoded on the CPU as well.

A sender of ever-new sizes gains nothing: checks are made for a fraction of the frames (CheckAllowance).

After the first difference, or an error that is not about memory, the CPU encodes everything, and ``reason`` says why.
A frame is never wrong: a result that differs is replaced by the CPU's before it is coded.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.entropy_model import EntropyModel, Indexes, Symbols
from aeic.errors import BundleError
from aeic.quantise import Floats, hyper_size, pad_latent
from aeic.runtime import cuda
from aeic.runtime.device_check import CHECK_EVERY, MOST_SIZES, CheckAllowance, Tally, lacks_memory
from edge_encoder.encoding import EntropyChoice
from edge_encoder.encoding.execution_provider import open_exact

log = logging.getLogger("aeic.edge.gpu_entropy")

GRAPH = "entropy_gpu.onnx"
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
        entropy: onnxruntime.InferenceSession,
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
        self._trusted: OrderedDict[Size, None] = OrderedDict()
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
            found = self._run(self._hyper_analysis, y=pad_latent(y)[None])
            shape = (1, self._bundle.hyper_channels, *hyper_size(*y.shape[1:]))
            if found is not None and found[0].shape == shape and np.isfinite(found[0]).all():
                z: Floats = found[0][0]
                return z
            if found is not None:
                self._give_up("the hyper analysis gave numbers that are not finite")
        return self._exact.hyper_analysis(y)

    def quantise(self, y: Floats, z_symbols: NDArray[np.int32]) -> Result:
        """As :meth:`aeic.entropy_model.EntropyModel.quantise`, and equal to it bit for bit."""
        height, width = y.shape[1:]
        found = self._on_gpu(y, z_symbols) if self._trusts((height, width)) else None
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

    def check(self, size: Size) -> bool:
        """Known answers for latents of ``size`` (h, w): two seeded latents and an extreme one.

        False where the GPU lacks memory, and where its answers differ, which also ends its use.
        """
        rng = np.random.default_rng(11)
        for reach in _REACH:
            y = (rng.standard_normal((self._bundle.channels, *size)) * reach).astype(np.float32)
            limit = int(max(1, min(reach, 2000)))
            z = rng.integers(-limit, limit + 1, (self._bundle.hyper_channels, *hyper_size(*size))).astype(np.int32)
            found = self._on_gpu(y, z)
            if found is None:
                return False
            if not _equal(found, self._exact.quantise(y, z)):
                self._give_up(f"known answers for latents of {size[1]}x{size[0]} differ")
                return False
        return True

    def _trusts(self, size: Size) -> bool:
        """Whether the GPU is used for this size; a new one is checked when it comes again."""
        with self._lock:
            if self.reason:
                return False
            self._allowance.earn()
            if size in self._trusted:
                self._trusted.move_to_end(size)
                return True
            self._seen[size] += 1
            due = self._seen[size] > 1 and self._allowance.take()
            if len(self._seen) > 4 * MOST_SIZES:
                self._seen = Counter(dict.fromkeys(self._trusted, 2))
        if not due or not self.check(size):
            return False
        with self._lock:
            self._trusted[size] = None
            if len(self._trusted) > MOST_SIZES:
                self._trusted.popitem(last=False)
        return True

    def _on_gpu(self, y: Floats, z_symbols: NDArray[np.int32]) -> Result | None:
        found = self._run(self._entropy, y=y[None], z_symbols=z_symbols[None])
        if found is None:
            return None
        symbols, indexes, y_hat = (part[0] for part in found)
        return symbols, indexes, y_hat + np.float32(0)

    def _run(self, session: onnxruntime.InferenceSession, **inputs: NDArray[Any]) -> list[NDArray[Any]] | None:
        """The outputs; None if the GPU fails. It stays in use only if what it lacked was memory."""
        try:
            outputs: list[NDArray[Any]] = session.run(None, inputs)
        except Exception as error:  # ONNX Runtime's own errors share no narrower base
            if not lacks_memory(error):
                self._give_up(f"the GPU failed ({error})", mismatch=False)
                return None
            log.warning("the entropy model does not fit into the GPU's memory, the CPU encodes this frame: %s", error)
        else:
            return outputs
        self._shrink(session, inputs)  # outside the handler, whose exception may keep memory
        return None

    def _shrink(self, session: onnxruntime.InferenceSession, inputs: dict[str, NDArray[Any]]) -> None:
        """Empty the session's arena on the GPU, which happens only after a run: of the smallest latents."""
        sides = {"y": (4, 4), "z_symbols": hyper_size(4, 4)}
        small = {name: np.zeros((*given.shape[:2], *sides[name]), given.dtype) for name, given in inputs.items()}
        try:
            session.run(None, small, cuda.shrinking())
        except Exception as error:  # the next frame tries again, and shows whether the GPU still works
            log.warning("the GPU's memory could not be given back: %s", error)

    def _give_up(self, reason: str, *, mismatch: bool = True) -> None:
        with self._lock:
            self._tally.mismatches += mismatch
            self.reason = self.reason or reason
        log.error("entropy coding moves to the CPU: %s", reason)


def open_gpu_entropy(
    bundle: Bundle, choice: EntropyChoice, *, gpu: bool, threads: int, check_every: int
) -> GpuEntropy | None:
    """A :class:`GpuEntropy`, or None where the CPU is to compute the entropy model.

    ``gpu``: the analysis runs on one. BundleError if ``choice`` is ``device`` and the GPU cannot be used.
    """
    if choice == "cpu" or (choice == "auto" and not gpu):
        return None
    try:
        graph = bundle.auxiliary(GRAPH)
        if graph is None:
            raise BundleError(
                f"bundle {bundle.name} has no {GRAPH}: add it with python -m aeic_train.export.gpu_graphs"
            )
        sessions = open_exact(bundle.path / "hyper_analysis.onnx", threads), open_exact(graph, threads)
    except Exception as error:
        if choice == "device":
            raise BundleError(
                f"the entropy model cannot run on the GPU ({error}); set AEIC_EDGE_ENTROPY=cpu"
            ) from error
        log.info("the entropy model stays on the CPU: %s", error)
        return None
    return GpuEntropy(bundle, *sessions, threads=threads, check_every=check_every)


def _equal(one: Result, other: Result) -> bool:
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = list(zip(one, other, strict=True))
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)
