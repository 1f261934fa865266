"""Entropy decoding on a device, in batches, watched by the CPU: its numbers are used only as long as they are the same.

The integer entropy model is exact on any device by construction (aeic_nets.integer.torch_ops). What is watched here is
everything below it: a broken driver, a faulty GPU, a library that uses lower precision than it claims.

- A size of latents is decoded on the CPU when it comes for the first time. When it comes again, the device has to give
  the CPU's answers for two seeded latents and an extreme one, in every padded batch size that occurs.
  A sender of ever-new sizes gains nothing: checks are made for a fraction of the frames (CheckAllowance).
- One in ``check_every`` frames is decoded on the CPU as well.
- A frame that fails on the device is decoded on the CPU before it is reported as damaged.

Triton's kernels (aeic_nets.integer.triton_ops) are used on request only, as they have not run on a GPU yet. They have
to give the known answers of a small latent at the start; otherwise torch's own kernels are used.

After the first difference the CPU decodes everything, and ``reason`` says why. Frames are never wrong: what differs is
noticed by the check value of the frame, or decoded again.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from aeic.bitstream import Frame
from aeic.bundle import Bundle
from aeic.entropy_model import EntropyDecoderModel, EntropyModel
from aeic.errors import BitstreamError
from aeic.latent_codec import LatentCodec, Latents
from aeic.passes import PASS_COUNT
from aeic.quantise import Floats, hyper_size
from aeic.runtime.device_check import CHECK_EVERY, MOST_SIZES, CheckAllowance, Tally
from aeic_nets.integer.model import IntegerModel
from aeic_nets.integer.torch_ops import Function, TorchEntropyModel, TorchOps
from aeic_nets.runtime.cuda_device import CudaDevice
from aeic_nets.runtime.cuda_graphs import Graphed

log = logging.getLogger(__name__)

LARGEST_BATCH = 8
"""Frames of one size that are decoded together."""
PATTERNS = 3
_REACH = 4000.0
"""The extreme latents' size: beyond all clipping points of the first rounding."""

START_SIZE = (4, 6)
"""The latents (h, w) on which Triton's kernels are tried."""

Kernels = Literal["torch", "triton"]
Outcome = Latents | BitstreamError
Size = tuple[int, int]


class DeviceEntropy:
    """Entropy decoding of one bundle by ``model``, which runs on a device. One thread calls it.

    ``stream`` is entered around all work of the device, so that it can run beside other work there.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: EntropyDecoderModel,
        *,
        threads: int = 0,
        check_every: int = CHECK_EVERY,
        stream: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """``threads`` of the CPU's graphs; ``check_every`` 0 checks no frame in service."""
        self._bundle, self._model, self._stream = bundle, _Padded(model), stream
        self._exact = EntropyModel(bundle, threads)
        self._cpu = LatentCodec(bundle, threads)
        self._device = LatentCodec(bundle, threads, decoding=self._model)
        self._check_every, self._since_check = check_every, 0
        self._seen: Counter[Size] = Counter()
        self._trusted: OrderedDict[tuple[Size, int], None] = OrderedDict()
        self._allowance = CheckAllowance()
        self._tally = Tally()
        self.reason = ""
        """Why the CPU has taken over; empty while the device decodes."""

    def take_tally(self) -> Tally:
        """What happened since the last call."""
        taken, self._tally = self._tally, Tally()
        return taken

    def decode_many(self, frames: Sequence[bytes]) -> list[Outcome]:
        """As :meth:`LatentCodec.decode_many`. An error of the device that is not about memory is raised."""
        groups: defaultdict[Size | None, list[int]] = defaultdict(list)
        for number, data in enumerate(frames):
            groups[self._size_of(data)].append(number)
        outcomes: dict[int, Outcome] = {}
        for size, numbers in groups.items():
            for start in range(0, len(numbers), LARGEST_BATCH):
                batch = numbers[start : start + LARGEST_BATCH]
                found = self._decode_batch([frames[number] for number in batch], size)
                outcomes |= dict(zip(batch, found, strict=True))
        return [outcomes[number] for number in range(len(frames))]

    def _size_of(self, data: bytes) -> Size | None:
        """The size of the frame's latents; None for what is no frame, which the CPU refuses."""
        try:
            return Frame.parse(data).latent_size
        except BitstreamError:
            return None

    def _decode_batch(self, frames: list[bytes], size: Size | None) -> list[Outcome]:
        if size is None or not self._trusts(size, len(frames)):
            return self._decode_on_cpu(frames)
        outcomes: list[Outcome] | None = None
        try:
            with self._stream():
                outcomes = self._device.decode_many(frames)
        except (MemoryError, torch.OutOfMemoryError) as error:
            what = str(error)  # a log's record would keep the tensors, too
            log.warning("entropy decoding of %d frames does not fit into the device's memory: %s", len(frames), what)
        if outcomes is None:  # outside the handler, whose exception keeps tensors on the device alive
            return self._decode_on_cpu(frames)
        self._tally.device += len(frames)
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, BitstreamError):
                (outcomes[number],) = self._cpu.decode_many([frames[number]])
                if not isinstance(outcomes[number], BitstreamError):
                    self._give_up(f"a frame was damaged by the device only ({outcome})")
                continue
            self._since_check += 1
            if self._check_every and self._since_check >= self._check_every:
                self._since_check = 0
                self._tally.checked += 1
                (exact,) = self._cpu.decode_many([frames[number]])
                if not _same(outcome, exact):
                    self._give_up("the latents of a frame differ")
        # After a mismatch, no result of this batch can be trusted.
        return self._decode_on_cpu(frames) if self.reason else outcomes

    def _decode_on_cpu(self, frames: list[bytes]) -> list[Outcome]:
        self._tally.cpu += len(frames)
        return self._cpu.decode_many(frames)

    def _give_up(self, reason: str) -> None:
        self._tally.mismatches += 1
        self.reason = self.reason or reason
        log.error("entropy decoding moves to the CPU: %s", reason)

    # -- known answers ----------------------------------------------------------------------------------------------

    def _trusts(self, size: Size, batch: int) -> bool:
        """Whether the device decodes this size in this batch; new ones are checked when they come again."""
        key = size, padded_size(batch)
        if self.reason:
            return False
        self._allowance.earn(batch)
        if key in self._trusted:
            self._trusted.move_to_end(key)
            return True
        self._seen[size] += 1
        if self._seen[size] < 2:
            if len(self._seen) > 4 * MOST_SIZES:
                self._seen = Counter(dict.fromkeys({known for known, _ in self._trusted}, 2))
            return False
        if not self._allowance.take() or not self.check(size, batch):
            return False
        self._trusted[key] = None
        if len(self._trusted) > MOST_SIZES:
            self._trusted.popitem(last=False)
        return True

    def check(self, size: Size, batch: int = 1) -> bool:
        """Known answers for latents of ``size`` (h, w) in a batch: two seeded latents and an extreme one.

        False where the device has not the memory, and where its answers differ, which also ends its use.
        """
        height, width = size
        rows = padded_size(batch)
        z, base = self._known(size)
        wanted: list[NDArray[Any]] = [self._exact.hyper_synthesis(z, height, width)]
        wanted += [part for index in range(PASS_COUNT) for part in self._exact.context(index, base)]
        for start in range(0, PATTERNS, min(rows, PATTERNS)):
            order = [(start + row) % PATTERNS for row in range(rows)]
            try:
                with self._stream():
                    found: list[NDArray[Any]] = [self._model.hyper_synthesis(z[order], height, width)]
                    found += [part for index in range(PASS_COUNT) for part in self._model.context(index, base[order])]
            except (MemoryError, torch.OutOfMemoryError):
                return False
            if not all(np.array_equal(got, want[order]) for got, want in zip(found, wanted, strict=True)):
                self._give_up(f"known answers for latents of {width}x{height}, {rows} at once, differ")
                return False
        return True

    def _known(self, size: Size) -> tuple[NDArray[np.int32], Floats]:
        """Symbols of z (3, Cz, hz, wz) and bases (3, M, h, w): quiet, usual, and far beyond what a picture gives."""
        rng = np.random.default_rng(11)
        hyper = (self._bundle.hyper_channels, *hyper_size(*size))
        shape = (self._bundle.channels, *size)
        z = np.stack([rng.integers(-reach, reach + 1, hyper) for reach in (1, 9, 2000)]).astype(np.int32)
        base = [np.rint(rng.normal(size=shape) * reach * 256) / 256 for reach in (0.3, 6.0)]
        base.append(np.where(rng.integers(0, 2, shape) > 0, _REACH, -_REACH))
        return z, np.stack(base).astype(np.float32)


def build(
    bundle: Bundle, device: str, threads: int = 0, check_every: int = CHECK_EVERY, kernels: Kernels = "torch"
) -> DeviceEntropy | None:
    """The bundle's entropy model on a torch device; None for a bundle without integer.npz.

    ``triton`` becomes ``torch``, and the log says why, where Triton's kernels do not run or give other numbers.
    """
    path = bundle.auxiliary("integer.npz")
    if path is None:
        log.warning("bundle %s has no integer.npz: entropy decoding stays on the CPU", bundle.name)
        return None
    integers, where = IntegerModel.load(path), torch.device(device)
    stream: Callable[[], AbstractContextManager[Any]] = nullcontext
    wrap: Callable[[Function], Function] = _as_it_is
    if where.type == "cuda":
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False  # the proof is about float32 sums
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        gpu = CudaDevice(where)
        stream, where, wrap = gpu.side_stream(), gpu.device, partial(Graphed, recorder=gpu.recorder())

    def made(ops: type[TorchOps]) -> DeviceEntropy:
        model = TorchEntropyModel(integers, where, wrap=wrap, ops=ops)
        return DeviceEntropy(bundle, model, threads=threads, check_every=check_every, stream=stream)

    return (_made_with_triton(made) if kernels == "triton" else None) or made(TorchOps)


def _as_it_is(function: Function) -> Function:
    return function


def _made_with_triton(made: Callable[[type[TorchOps]], DeviceEntropy]) -> DeviceEntropy | None:
    """What ``made`` returns for Triton's operations if it gives the known answers."""
    try:
        from aeic_nets.integer.triton_ops import TritonOps

        entropy = made(TritonOps)
        if entropy.check(START_SIZE):
            log.info("entropy decoding uses Triton's kernels")
            return entropy
        problem = entropy.reason or "they do not fit into the device's memory"
    except Exception as error:  # among others: no Triton, no C compiler, which it needs, no folder to write to
        problem = f"{type(error).__name__}: {error}"
    log.warning("entropy decoding uses torch's kernels instead of Triton's: %s", problem)
    return None


class _Padded:
    """A model whose batches are padded to a power of two, so that the device meets few shapes."""

    def __init__(self, model: EntropyDecoderModel) -> None:
        self._model = model

    def hyper_synthesis(self, z_symbols: NDArray[np.int32], height: int, width: int) -> Floats:
        return self._model.hyper_synthesis(_pad(z_symbols), height, width)[: len(z_symbols)]

    def context(self, index: int, base: Floats) -> tuple[Floats, NDArray[np.int8]]:
        means, indexes = self._model.context(index, _pad(base))
        return means[: len(base)], indexes[: len(base)]


def padded_size(batch: int) -> int:
    """The next power of two."""
    return 1 << (batch - 1).bit_length()


def _pad(values: NDArray[Any]) -> NDArray[Any]:
    missing = padded_size(len(values)) - len(values)
    return np.concatenate([values, np.repeat(values[:1], missing, 0)]) if missing else values


def _same(one: Outcome, other: Outcome) -> bool:
    if isinstance(one, BitstreamError) or isinstance(other, BitstreamError):
        return False
    return one.digest == other.digest and np.array_equal(one.symbols, other.symbols)
