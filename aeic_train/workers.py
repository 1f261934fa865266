"""The processes of one training run. Each computes the gradients of its own crops, and gloo or NCCL averages them.

All processes begin with the same weights and take the same steps, so their weights stay bit-identical. The first
one (rank 0) writes the state, the log and the samples.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import rendezvous

TIMEOUT = timedelta(hours=12)
"""How long a process waits for the others. It is long, so that a run may be paused."""


class Workers:
    """The rank of this process among the ``count`` processes of a run. The default is a run of one process."""

    def __init__(self, rank: int = 0, count: int = 1, store: dist.Store | None = None) -> None:
        self.rank, self.count, self._store = rank, count, store

    @classmethod
    def join(cls, rank: int, count: int, meeting: Path) -> Workers:
        """Wait for the ``count - 1`` other processes of this machine, which use the same file ``meeting``."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = dist.FileStore(str(meeting), count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=TIMEOUT)
        return cls(rank, count, store)

    @classmethod
    def from_environment(cls, device: torch.device) -> Workers:
        """The process that ``torchrun`` started, on this machine or on several. NCCL for CUDA, gloo for CPUs.

        Memory of a GPU is addressed by the current device, so the caller chooses that first.
        """
        store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
        return cls(rank, count, dist.PrefixStore("aeic", store))

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def average(self, parameters: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """Replace the gradients of ``parameters`` by their means over all processes.

        ``numbers`` (k,) are values of this process. Returns those of all processes, (count, k) float32, in every
        process. Both use one collective call. Every process must have gradients at the same parameters.
        """
        if self.count == 1:
            return numbers[None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        own = torch.zeros(self.count, len(numbers), device=numbers.device)
        own[self.rank] = numbers
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), own.reshape(-1)])
        dist.all_reduce(flat)
        *averages, everyone = flat.split([*(gradient.numel() for gradient in gradients), own.numel()])
        for gradient, average in zip(gradients, averages):
            gradient.copy_(average.view_as(gradient)).div_(self.count)
        return everyone.view_as(own)

    def wait(self) -> None:
        """Wait until all processes have called this. What the first has written before is then visible to all."""
        if self.count > 1:
            dist.barrier()

    def gather(self, topic: str, value: Any) -> list[Any]:
        """In the first process, the JSON ``value`` of every process by rank; in the others, an empty result.

        A ``topic`` may be used again only after a :meth:`wait`.
        """
        if self._store is None:
            return [value]
        if not self.first:
            self._store.set(f"{topic}/{self.rank}", json.dumps(value))
            return []
        others = [f"{topic}/{rank}" for rank in range(1, self.count)]
        values = [json.loads(self._store.get(name)) for name in others]
        for name in others:
            self._store.delete_key(name)
        return [value, *values]


class StopSignal:
    """Set by SIGTERM or SIGINT. The same signal again ends the process at once.

    Ctrl-C reaches the processes of :func:`launch` twice, as SIGINT from the terminal and as SIGTERM from the parent.
    Each of the two is counted separately.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = True
        signal.signal(number, signal.SIG_DFL)


def under_torchrun() -> bool:
    """Whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Run ``function(workers, *arguments)`` in ``count`` processes of this machine and wait for all of them.

    SIGTERM and SIGINT are passed on. If one process fails, the others are ended and its error is raised.
    """
    if count == 1:
        function(Workers(), *arguments)
        return
    with tempfile.TemporaryDirectory(prefix="aeic-train-") as folder:
        context = torch.multiprocessing.spawn(
            _join_and_run, (function, arguments, count, Path(folder) / "meeting"), nprocs=count, join=False
        )

        def pass_on(number: int, _: FrameType | None) -> None:
            for process in context.processes:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, pass_on)
        while not context.join():
            pass


def _join_and_run(
    rank: int, function: Callable[..., None], arguments: tuple[Any, ...], count: int, meeting: Path
) -> None:
    function(Workers.join(rank, count, meeting), *arguments)
    # Not after an error: the others would fail at the closed connection before this process has reported its own.
    dist.destroy_process_group()
