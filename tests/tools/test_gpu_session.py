"""The session for a GPU, on a CPU: every step runs, and the report is written after each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aeic import profiles
from aeic.bundle import Bundle
from aeic_nets.integer.model import IntegerModel
from aeic_nets.runtime.torch_backend import TorchGenerator
from benchmarks.gpu import session
from edge_encoder.encoding.resident_graph import ResidentGraph
from tests.support.capturing_session import OUTPUTS, Session, inputs, right
from tests.support.fake_cuda_device import FakeCudaDevice


def test_the_whole_session_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    assert session.main(["--device", "cpu", "--short", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["ok"] and list(report["steps"]) == list(session.STEPS)
    assert all(row["different"] == 0 for row in report["steps"]["entropy"]["rows"])
    assert report["steps"]["entropy"]["triton"] == "skipped: Triton's kernels need a GPU"
    assert report["steps"]["service"]["mismatches"] == 0
    assert [row["way"] for row in report["steps"]["edge"]["rows"]] == ["arrays", "captured False"]
    assert all(row["different"] == 0 for row in report["steps"]["edge"]["rows"])


def test_on_a_gpu_tritons_kernels_are_measured_too_unless_they_fail(tmp_path: Path) -> None:
    """Here they do, as the device is none, and the other ways remain."""
    running = session.Session(torch.device("cuda"), True, tmp_path / "out.json", Bundle.load(), 0.0)
    path = running.bundle.auxiliary("integer.npz")
    assert path is not None
    ways, skipped = session.entropy_ways(running, IntegerModel.load(path))
    assert {way.kernels for way in ways} == {"torch"} and {way.graphs for way in ways} == {True, False}
    assert skipped.startswith("skipped: ")


def test_a_machine_without_onnx_skips_the_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `cloud` does not have the package."""
    monkeypatch.setattr(session.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(session, "STEPS", {"edge": session.edge})
    out = tmp_path / "report.json"
    assert session.main(["--device", "cpu", "--short", "--out", str(out)]) == 0
    assert "onnx, which would make it, is not installed" in json.loads(out.read_text())["steps"]["edge"]["skipped"]


def test_a_step_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, reports = tmp_path / "report.json", []

    def breaks(running: session.Session) -> dict[str, object]:
        raise RuntimeError("CUDA error: out of luck")

    def works(running: session.Session) -> dict[str, object]:
        reports.append(json.loads(out.read_text()))
        return {"ok": True}

    monkeypatch.setattr(session, "STEPS", {"first": breaks, "second": works, "third": works})
    assert session.main(["--device", "cpu", "--short", "--out", str(out)]) == 1
    assert [list(report["steps"]) for report in reports] == [["first"], ["first", "second"]]
    assert reports[0]["steps"]["first"]["error"] == "RuntimeError: CUDA error: out of luck"
    assert not json.loads(out.read_text())["ok"]


def test_a_way_of_decoding_that_fails_costs_no_other_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile needs a C compiler, which a bare machine has not."""
    ways = session.decoder_ways

    def with_compiler(running: session.Session, generator: Any) -> dict[str, Any]:
        def compiled(values: Any) -> Any:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        return ways(running, generator) | {"compiled": compiled}

    monkeypatch.setattr(session, "decoder_ways", with_compiler)
    monkeypatch.setattr(session, "STEPS", {"decoder": session.decoder})
    out = tmp_path / "report.json"
    assert session.main(["--device", "cpu", "--short", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["steps"]["decoder"]
    assert {row["way"]: "ms" in row for row in found["rows"]} == {"eager": True, "compiled": False}
    assert "C compiler" in found["rows"][-1]["error"] and "psnr" in found


def test_without_time_steps_are_skipped(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    assert session.main(["--device", "cpu", "--short", "--seconds", "1", "--out", str(out)]) == 0
    assert {step["skipped"] for step in json.loads(out.read_text())["steps"].values()} == {"no time was left"}


def test_the_ways_of_fetching_pictures_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run on a GPU only; here with one whose copies happen as late as they may."""
    nano = profiles.profile("nano")
    folder = session.random_decoder(nano, tmp_path, torch.device("cpu"))
    monkeypatch.setattr(
        TorchGenerator, "_synthesise", lambda self, values, clock=None: values[:, :3].repeat(1, 1, 32, 32)
    )
    gpu = FakeCudaDevice()
    generator = TorchGenerator(folder, gpu=gpu, dtype=torch.float32)
    values = session.latents(nano, 2, 64, 64)
    wanted = TorchGenerator(folder, dtype=torch.float32).pictures(values)
    ways = session.fetching_ways(generator)
    copied = {}
    for name, way in ways.items():
        before = gpu.copying.copied
        assert (way(values) == wanted).all()
        copied[name] = gpu.copying.copied - before
    assert copied == {"graph": 1, "graph pageable": 0, "four": 4, "four overlapped": 4}


@pytest.mark.parametrize("works", [True, False])
def test_a_size_is_captured_by_its_second_run_or_runs_without(works: bool) -> None:
    def fails(event: str, number: int) -> None:
        if event == "capture" and not works:
            raise RuntimeError("CUDA failure 900")

    given = inputs(4)
    resident = ResidentGraph(lambda capture: Session(capture, fails), OUTPUTS, device="cpu")
    assert all(right(session.bound_run(resident, given), given) for _ in range(3))
    assert resident.captures == works
