"""A training log read, drawn and put into a table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from aeic_train.reports import training_curves


def line(total: int, stage: str = "1", **more: Any) -> dict[str, Any]:
    return {"stage": stage, "total": total, "hours": total / 100, "psnr": 20.0, "features": 5.0, "bpp": 0.1} | more


def test_what_was_done_again_is_left_out() -> None:
    lines = [line(total) for total in (1, 2, 3, 2, 3)]
    assert training_curves.lasting(lines) == [lines[0], lines[3], lines[4]]


def test_an_empty_log_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="train some steps"):
        training_curves.read(tmp_path / "log.jsonl")


def test_a_rate_point_has_its_own_figures_where_the_log_holds_them() -> None:
    old = line(1, bpp_0=0.1)
    new = old | {"mse_0": 0.04, "features_0": 4.0, "log_variance_0": 1.0}
    assert [training_curves.value(old, m, "0") for m in ("bpp", "psnr", "features", "variance")] == [
        0.1,
        20.0,
        5.0,
        None,
    ]
    assert training_curves.value(new, "psnr", "0") == pytest.approx(20.0)
    assert training_curves.value(new, "features", "0") == 4.0
    assert training_curves.value(new, "variance", "0") == pytest.approx(math.e)


def test_plots_and_table_of_a_log(tmp_path: Path) -> None:
    lines = [line(i, bpp_4=0.2 / i) for i in range(1, 8)]
    lines += [line(i, "2", bpp_0=0.01, bpp_4=0.04, mse_0=0.04, log_variance_0=-2.0) for i in range(8, 12)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    training_curves.main([str(tmp_path / "log.jsonl"), "--out", str(tmp_path)])
    for name in ("training", "latents"):
        assert (tmp_path / f"{name}.svg").stat().st_size > 5000 and (tmp_path / f"{name}.png").exists()
    text = (tmp_path / "training.md").read_text()
    assert "](training.svg)" in text and "](latents.svg)" in text
    rows = text.partition("|---")[2].splitlines()[1:]
    assert [row.split(" | ")[3] for row in rows] == ["r4", "r0", "r4"]
    assert rows[1].startswith("| 2 | 11 | 0.11 | r0 | 0.0100 | 20.00 |") and rows[1].endswith("| 0.135 |")


def test_without_variances_there_is_no_plot_of_them(tmp_path: Path) -> None:
    assert not training_curves.draw_latents([line(1, bpp_0=0.1)], tmp_path / "latents")
