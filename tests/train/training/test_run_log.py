"""The log of a run: means over the steps since the last line."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from aeic_train.training.run_log import RunLog


def test_a_line_holds_the_means_since_the_last(tmp_path: Path, capsys: Any) -> None:
    run_log = RunLog(tmp_path / "log.jsonl")
    place = {"stage": "1", "step": 2, "total": 7, "hours": 0.5}
    run_log.add({"mse": torch.tensor(0.03), "bpp_0": 0.1})
    run_log.add({"mse": 0.05})
    run_log.write(place, 9, 3.0)
    run_log.add({"mse": 0.4})
    run_log.write(place | {"step": 3}, 9, 1.0)
    first, second = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert first == place | {"seconds_per_step": 1.5, "psnr": 20.0, "mse": 0.04, "bpp_0": 0.1}
    assert second["mse"] == 0.4 and second["seconds_per_step"] == 1.0 and "bpp_0" not in second
    assert capsys.readouterr().out.startswith("1 2/9 1.50 s/step psnr 20.00 ")


def test_the_same_goes_to_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, tuple[float, int]] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "events")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written[name] = value, step

        def flush(self) -> None:
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    run_log = RunLog(tmp_path / "log.jsonl", tensorboard=tmp_path / "events")
    run_log.add({"mse": 0.04, "bpp_0": 0.1})
    run_log.write({"stage": "1", "step": 2, "total": 7, "hours": 0.5}, 9, 3.0)
    assert written == {"mse": (0.04, 7), "bpp_0": (0.1, 7), "psnr": (20.0, 7), "seconds_per_step": (3.0, 7)}
