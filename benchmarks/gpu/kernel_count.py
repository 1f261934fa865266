"""How many kernels the entropy model launches on a GPU, counted on a CPU: with torch's operations and with Triton's.

    TRITON_INTERPRET=1 python -m benchmarks.gpu.kernel_count [--profile se]

It counts torch's operations that compute something, and launches of Triton kernels, by torch's dispatcher and in
Triton's interpreter. An operation of torch is one kernel on a GPU, at times two (padding fills, then copies). Weights
are random: they do not change the number. The results of both are compared too. The last line is JSON, and the exit
status is 1 if they differ. Without Triton, or without TRITON_INTERPRET, only torch's operations are counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from aeic.passes import PASS_COUNT
from aeic.profiles import profile
from aeic_nets.codec import Codec
from aeic_nets.integer.calibrate import calibrate, quantise
from aeic_nets.integer.model import IntegerModel
from aeic_nets.integer.torch_ops import TorchEntropyModel, TorchOps

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "_reshape_alias", "lift_fresh"}
"""Operations that only allocate or rename, beside views."""


class Counted(TorchDispatchMode):
    """Counts operations of torch by name in ``counts``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_KERNEL:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def random_model(name: str) -> IntegerModel:
    """The integer model of a profile's size, with the weights that training starts with."""
    sizes = profile(name)
    with torch.device("meta"):
        codec = Codec(sizes)
    del codec.g_s, codec.g_a
    torch.manual_seed(0)
    codec.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.normal_(0, 0.02)
        latents = [3 * torch.randn(1, sizes.latent_channels, 4, 4)]
    return quantise(codec, calibrate(codec, latents), np.zeros(sizes.hyper_channels, np.float32))


@torch.no_grad()  # not inference_mode, in which torch's dispatcher does not split what is made of several operations
def count(
    model: IntegerModel, ops: type[TorchOps], passes: int = PASS_COUNT
) -> tuple[dict[str, Counter[str]], list[Any]]:
    """Kernels of hyper synthesis and of the first ``passes``, by name, and their results. Constants are made before."""
    counted = TorchEntropyModel(model, ops=ops)
    noise = torch.Generator().manual_seed(1)
    base = torch.randn((1, 2, 2, model.sizes.latent_channels), generator=noise).mul(4 * 256).round() / 256
    z = torch.randn((1, model.sizes.hyper_channels, 1, 1), generator=noise).mul(9).round()
    parts: dict[str, Callable[[], Any]] = {"h_s": partial(counted._hyper, z)}
    parts |= {f"pass {index}": partial(counted._context, index, base) for index in range(passes)}
    found, results = {}, []
    for part, run in parts.items():
        results.append(run())
        with Counted() as counter, counted_launches(ops, counter.counts):
            run()
        found[part] = counter.counts
    return found, results


@contextmanager
def counted_launches(ops: Any, counts: Counter[str]) -> Iterator[None]:
    """Count launches of Triton kernels; what the interpreter itself asks of torch is not counted."""
    launch: Any = getattr(ops, "launch", None)

    def counted(self: Any, kernel: Any, *arguments: Any, **constants: Any) -> None:
        counts[kernel.__name__] += 1
        with _disable_current_modes():
            launch(self, kernel, *arguments, **constants)

    if launch is None:
        yield
        return
    ops.launch = counted
    try:
        yield
    finally:
        ops.launch = launch


def tensors(results: list[Any]) -> list[torch.Tensor]:
    """The tensors of ``results``, in which passes have two."""
    return [one for result in results for one in (result if isinstance(result, tuple) else (result,))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="se", help="nano, se or me")
    options = parser.parse_args(argv)
    ways: dict[str, type[TorchOps]] = {"torch": TorchOps}
    if importlib.util.find_spec("triton") and os.environ.get("TRITON_INTERPRET") == "1":
        from aeic_nets.integer.triton_ops import TritonOps

        ways["triton"] = TritonOps
    model, result, first = random_model(options.profile), {}, None
    for way, ops in ways.items():
        found, values = count(model, ops)
        first = first or values
        equal = all(map(torch.equal, tensors(first), tensors(values)))
        result[way] = {part: sum(counts.values()) for part, counts in found.items()}
        print(f"{way}: pass 0 is {dict(found['pass 0'].most_common())}")
    print(json.dumps({"profile": options.profile, "kernels": result, "compared": len(ways) > 1, "equal": equal}))
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
