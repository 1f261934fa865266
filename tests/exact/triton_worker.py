"""The Triton kernels in Triton's interpreter: ``TRITON_INTERPRET=1 python -m tests.exact.triton_worker``.

A process of its own, because Triton reads the variable when a kernel is defined. Prints one JSON object: the number of
values that differ from the reference or from torch's operations, by case.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from aeic.bundle import Bundle
from aeic.passes import gather
from aeic_nets.integer import triton_ops
from aeic_nets.integer.model import IntegerModel, Layer, Site, Sizes
from aeic_nets.integer.reference import Reference
from aeic_nets.integer.torch_ops import Codes, TorchEntropyModel, TorchOps
from aeic_nets.integer.triton_ops import TritonOps
from aeic_nets.runtime import device_entropy
from benchmarks.gpu import kernel_count
from tests.support.models.exact_models import MODELS, bases, small_model, write_exact_bundle
from tests.support.roots import ROOT

CPU = torch.device("cpu")
EXTREMES = [0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, float("inf"), -float("inf"), 2.0**24, -(2.0**24)]
SITES = {
    "8": Site(-3),
    "16": Site(-9, bits=16),
    "12": Site(-8, bits=12),
    "20": Site(-8, bits=20),
    "gelu": Site(-4),
    "fc1.u": Site(-2),
    "norm": Site(-5),
}


def same(found: Any, wanted: Any) -> int:
    """Values that differ; a shape or type that differs is an error."""
    found, wanted = (one.numpy() if isinstance(one, Tensor) else one for one in (found, wanted))
    assert found.shape == wanted.shape and found.dtype == wanted.dtype, (found.shape, wanted.shape)
    return int(np.count_nonzero(found != wanted))


def shipped() -> int:
    """The shipped model, against the reference, two pictures at once."""
    model, rng = IntegerModel.load(ROOT / "models" / "aeic-se-nano" / "integer.npz"), np.random.default_rng(0)
    ours, reference = TorchEntropyModel(model, ops=TritonOps), Reference(model)
    z = rng.integers(-9, 10, (2, model.sizes.hyper_channels, 1, 1)).astype(np.int32)
    base = reference.hyper_synthesis(z)[..., :2, :3]
    different = same(ours.hyper_synthesis(z, 2, 3), base)
    return different + context(ours, reference, 2, base)


def context(ours: TorchEntropyModel, reference: Reference, index: int, base: Any) -> int:
    """Differences of one pass."""
    means, indexes = ours.context(index, base)
    want_means, want_indexes = reference.context(index, base)
    return same(means, gather(want_means, index)) + same(indexes, gather(want_indexes, index))


def small(kind: str, name: str, index: int) -> int:
    """A pass of a model with random weights, also 14-bit ones, on random and extreme bases."""
    model = small_model(0, MODELS[kind])
    return context(TorchEntropyModel(model, ops=TritonOps), Reference(model), index, bases()[name])


def operations(layers: dict[str, Layer]) -> tuple[TorchOps, TritonOps]:
    """torch's and Triton's, on :data:`SITES` and ``layers``."""
    model = IntegerModel(Sizes(8, 8, 1), SITES, layers, np.zeros(4, np.float32))
    return TorchOps(model, CPU), TritonOps(model, CPU)


def rounding() -> int:
    """Every half step, and extreme values, in more than one block; a permuted tensor; limbs; products; cells."""
    plain, fused = operations({})
    halves = torch.arange(-(2**10), 2**10) / 2**5
    steps = torch.cat([halves, torch.tensor(EXTREMES), torch.arange(-(2**17), 2**17, 77) / 2**10])
    x = steps[: len(steps) // 6 * 6].reshape(1, 2, -1, 3)
    different = 0
    for values in (x, x.permute(0, 2, 1, 3)):
        different += same(fused.quantise(values, "8").values, plain.quantise(values, "8").values)
        different += sum(same(fused.settle(values, site), plain.settle(values, site)) for site in ("12", "20"))
        high, low = fused.quantise(values, "16").values
        different += same(256 * high + low, plain.quantise(values, "16").values)
        different += int((high.abs() > 128).sum() + (low.abs() > 128).sum())
    every = torch.arange(-128.0, 128)
    a, b = (Codes(t.reshape(1, 16, 4096 // 4, 4), np.full(4, -4)) for t in torch.cartesian_prod(every, every).T)
    different += same(fused.gate(a, b, "8").values, plain.gate(a, b, "8").values)
    scales = torch.cat([torch.arange(-8, 8400) / 512, torch.arange(-9, 2100) / 8.0, torch.tensor([1e30, 1e-30])])
    return different + same(fused.cells(scales), plain.cells(scales))


def too_wide() -> int:
    """A site that is too wide to round by an addition is refused."""
    model = IntegerModel(Sizes(8, 8, 1), {"means": Site(-8, bits=24)}, {}, np.zeros(4, np.float32))
    try:
        TritonOps(model, CPU)
    except ValueError as error:
        return int("at most 22 bits, not means" not in str(error))
    return 1


def norms() -> int:
    """Constant, alternating, huge and random positions, of even and odd counts of channels."""
    plain, fused = operations({})
    rng, different = np.random.default_rng(0), 0
    for count in (1, 3, 48, 130):
        rows = rng.integers(-(2**12), 2**12, (7, count)) / 2**8
        rows[0], rows[1], rows[2] = 0, 15.75, 2**15
        rows[3] = np.where(np.arange(count) % 2, 16, -16)
        rows[4] = np.eye(1, count)[0] / 256
        x = torch.as_tensor(rows.reshape(1, 7, 1, count).astype(np.float32))
        different += same(fused.norm(x, "norm").values, plain.norm(x, "norm").values)
    return different


def convolutions() -> int:
    """Kernels of the network, with one and two limbs, on pictures smaller than some of them; GELU and addition."""
    rng, different = np.random.default_rng(3), 0
    kernels = (((1, 1), 1), ((3, 3), 1), ((5, 5), 12), ((1, 11), 12), ((11, 1), 12))
    for number, (kernel, groups) in enumerate(kernels):
        for limbs, site in ((1, "8"), (2, "16")):
            weight = [rng.integers(-64, 64, (12, 12 // groups, *kernel)).astype(np.int8) for _ in range(limbs)]
            bias = rng.integers(-(2**16), 2**16, 12).astype(np.int32)
            plain, fused = operations({"8": Layer(tuple(weight), rng.integers(-12, -8, 12), bias, groups)})
            x = torch.as_tensor(rng.normal(size=(2, 2, 3 + number, 36)).astype(np.float32) * 20)
            one = plain.split(plain.quantise(x, site), (12, 12, 12))[1]  # as inception does: not contiguous
            two = fused.split(fused.quantise(x, site), (12, 12, 12))[1]
            different += same(fused.wide(two, "8"), plain.wide(one, "8"))
            wanted, codes, before = plain.conv(one, "8"), fused.conv(two, "8"), x[..., :12]
            different += same(fused.gelu(codes, "gelu").values, plain.gelu(wanted, "gelu").values)
            stream, added = plain.stream(wanted), fused.stream(codes)
            different += same(fused.add(before, added), plain.add(before, stream))
            different += same(fused.settle(added, "12"), plain.settle(stream, "12"))
    return different


@triton.jit
def half_up(scaled, low, high):  # type: ignore[no-untyped-def]  # Triton has no types
    return tl.floor(tl.minimum(tl.maximum(scaled, low), high) + 0.5)


@triton.jit
def no_clip(scaled, low, high):  # type: ignore[no-untyped-def]  # the same
    return (scaled + triton_ops.TO_EVEN) - triton_ops.TO_EVEN


@contextmanager
def planted(fault: Any) -> Iterator[None]:
    """Kernels that round with ``fault``."""
    before = triton_ops._codes
    triton_ops._codes = fault
    try:
        yield
    finally:
        triton_ops._codes = before


def faulty(fault: Any) -> int:
    """Differences of the operations with a fault; more than none if the comparison sees it."""
    with planted(fault):
        return rounding()


def starts() -> dict[str, list[str]]:
    """The operations that the cloud starts with, and what it logs: with the kernels as they are, and with a fault."""
    device_entropy.START_SIZE, device_entropy.PATTERNS = (2, 2), 1  # the interpreter is slow
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger(device_entropy.__name__).addHandler(handler)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.load(write_exact_bundle(Path(folder), integers=True))
        for name, rounding in (("right", triton_ops._codes), ("wrong", half_up)):
            with planted(rounding):
                entropy = device_entropy.build(bundle, "cpu", threads=1, kernels="triton")
            assert entropy is not None
            model: Any = entropy._model
            found[name] = [type(model._model._ops).__name__, entropy.reason, *lines]
            lines.clear()
    return found


def kernels() -> dict[str, Counter[str]]:
    """Kernels of pass 0 of a small model, by name, with torch's operations and with Triton's."""
    return {
        ops.__name__: kernel_count.count(small_model(), ops, passes=1)[0]["pass 0"] for ops in (TorchOps, TritonOps)
    }


CASES: dict[str, Callable[[], Any]] = {
    "rounding": rounding,
    "norms": norms,
    "too wide": too_wide,
    "convolutions": convolutions,
    "8 bits": lambda: small("8 bit", "one pixel", 0),
    "14 bits": lambda: small("14-bit weights at the ends", "alternating", 1),
    "shipped": shipped,
}
FAULTS: dict[str, Callable[[], Any]] = {
    "half up": lambda: faulty(half_up),
    "no clip": lambda: faulty(no_clip),
}


def main() -> int:
    torch.set_num_threads(1)
    kinds = {"cases": CASES, "faults": FAULTS}
    found: dict[str, Any] = {kind: {name: run() for name, run in runs.items()} for kind, runs in kinds.items()}
    print(json.dumps(found | {"starts": starts(), "kernels": kernels()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
