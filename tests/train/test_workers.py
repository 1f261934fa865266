"""Several processes of one run: gradients averaged, weights equal to the bit, signals passed on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from aeic_train.workers import Workers, launch
from tests.support.roots import ROOT


def _average(workers: Workers, folder: Path) -> None:
    parameter, without = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0]) * (1 + workers.rank)
    numbers = workers.average([parameter, without], torch.tensor([10.0 + workers.rank, 0.25]))
    topics = [workers.gather(topic, {"rank": workers.rank}) for topic in ("a", "b")]
    torch.save({"gradient": parameter.grad, "numbers": numbers, "topics": topics}, folder / f"{workers.rank}.pt")


def test_gradients_are_averaged_and_numbers_are_those_of_all(tmp_path: Path) -> None:
    launch(_average, (tmp_path,), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for found in (first, second):
        torch.testing.assert_close(found["gradient"], torch.tensor([1.5, 3.0, 4.5]))
        torch.testing.assert_close(found["numbers"], torch.tensor([[10.0, 0.25], [11.0, 0.25]]))
    assert first["topics"] == [[{"rank": 0}, {"rank": 1}]] * 2
    assert second["topics"] == [[], []]


TORCHRUN = """
import sys
from pathlib import Path
import torch
from aeic_train.workers import Workers, under_torchrun
from tests.train.test_workers import _average

assert under_torchrun()
_average(Workers.from_environment(torch.device("cpu")), Path(sys.argv[1]))
torch.distributed.destroy_process_group()
"""


def test_processes_of_torchrun_find_each_other(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for found in (first, second):
        torch.testing.assert_close(found["gradient"], torch.tensor([1.5, 3.0, 4.5]))
    assert first["topics"] == [[{"rank": 0}, {"rank": 1}]] * 2 and second["topics"] == [[], []]


def test_one_process_needs_no_others() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    assert Workers().average([parameter], torch.tensor([3.0])).tolist() == [[3.0]]
    assert parameter.grad.tolist() == [1.0, 2.0]
    assert Workers().gather("log", 7) == [7]


def _fail(workers: Workers) -> None:
    if workers.rank == 1:
        raise ValueError("process one is broken")
    workers.average([], torch.zeros(1))  # waits for the other


def test_the_failure_of_one_process_ends_all() -> None:
    with pytest.raises(Exception, match="process one is broken"):
        launch(_fail, (), 2)


SIGNALS = """
import signal
from aeic_train.workers import StopSignal

before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
with StopSignal() as stop:
    assert not stop.received
    signal.raise_signal(signal.SIGTERM)
    assert stop.received
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.raise_signal(signal.SIGINT)  # Ctrl-C of the terminal, after the parent's SIGTERM: nothing new
assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
"""


def test_a_second_signal_is_not_caught() -> None:
    """In a process of its own: signals are not raised in the one that runs all tests."""
    subprocess.run([sys.executable, "-c", SIGNALS], cwd=ROOT, check=True, timeout=120)
