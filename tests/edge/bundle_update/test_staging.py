"""Bundle updates: staged and tested, on trial where no frame can be lost, then confirmed, refused or rolled back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from aeic.bundle import Bundle
from aeic.errors import BundleError
from edge_encoder.bundle_update import __main__, staging
from edge_encoder.bundle_update.staging import TRIAL_STARTS, Staging
from edge_encoder.errors import SpoolError
from edge_encoder.service import EdgeService
from edge_encoder.spool.spool import Spool
from edge_encoder.submission.request import EncodeRequest
from tests.support.edge.fakes import FakeCloud, serving, settings
from tests.support.edge.process import StartEdge
from tests.support.models.tiny_bundle import write_tiny_bundle
from tests.support.pictures import picture
from tests.support.roots import ROOT


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A bundle that differs from the tiny one."""
    return write_tiny_bundle(tmp_path / "other", seed=5)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the test in a process of its own."""
    monkeypatch.setattr(staging, "_check", lambda folder: None)


@contextlib.asynccontextmanager
async def edge(folder: Path, bundle: Path, address: str, **changes: object) -> AsyncIterator[EdgeService]:
    changed = {"bundles_dir": folder / "bundles", "bundle_trial_frames": 3, "cloud_address": address, **changes}
    service = EdgeService(settings(folder / "data", bundle=bundle, drain_timeout_seconds=0.0, **changed))
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def post(service: EdgeService, number: int) -> None:
    taken = await service.take(picture(seed=number), EncodeRequest(prompt=True))
    await service.waiting.settled(taken.entry.id, 5)


def test_staging_tests_the_bundle_in_a_process_of_its_own(
    tmp_path: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["--dir", str(tmp_path / "b"), "stage", str(other), "--digest", "00" * 32]) == 5
    assert "not 0000" in capsys.readouterr().err
    assert __main__.main(["--dir", str(tmp_path / "b"), "stage", str(other)]) == 0
    state = json.loads(capsys.readouterr().out)
    name = Bundle.load(other).digest.hex()[:16]
    assert state == {"current": "", "previous": "", "trial": name, "starts": 0, "refused": ""}
    assert Bundle.load(tmp_path / "b" / name).digest == Bundle.load(other).digest
    assert not list((tmp_path / "b").glob(".incoming*"))
    assert __main__.main(["--dir", str(tmp_path / "b"), "rollback"]) == 0
    assert json.loads(capsys.readouterr().out)["trial"] == ""


def test_a_bundle_that_fails_on_this_box_is_not_staged(tmp_path: Path, other: Path) -> None:
    (other / "context_2.onnx").write_bytes(b"no graph at all")
    with pytest.raises(BundleError, match="altered"):
        Staging(tmp_path / "b").stage(other)
    manifest = json.loads((other / "bundle.json").read_text())  # now its digests are right, and it is still no graph
    files = manifest["files"]
    files["context_2.onnx"] = sha256((other / "context_2.onnx").read_bytes()).hexdigest()
    lines = "".join(f"{n} {files[n]}\n" for n in sorted(manifest["defines_bitstream"]))
    manifest["fingerprint"] = sha256(lines.encode()).hexdigest()[:6]
    (other / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="failed its test"):
        Staging(tmp_path / "b").stage(other)
    assert Staging(tmp_path / "b").state == staging.BundleState()


async def test_a_trial_is_confirmed_by_accepted_frames_and_can_be_rolled_back(
    tmp_path: Path, tiny_bundle: Path, other: Path, quick: None
) -> None:
    digest = Bundle.load(other).digest
    stage = Staging(tmp_path / "bundles")
    name = stage.stage(other)
    async with serving(FakeCloud(digest=digest)) as address:
        async with edge(tmp_path, tiny_bundle, address) as service:
            assert service.encoder.bundle.digest == digest and service.trial.on
            for number in range(3):
                assert stage.state.trial == name
                await post(service, number)
            assert dataclasses.astuple(stage.state) == (name, "", "", 1, "")
        async with edge(tmp_path, tiny_bundle, address) as service:
            assert service.encoder.bundle.digest == digest and not service.trial.on
    stage.rollback()
    async with edge(tmp_path, tiny_bundle, "") as service:
        assert service.encoder.bundle.digest == Bundle.load(tiny_bundle).digest
    assert stage.state.previous == name


async def test_no_trial_where_frames_could_be_lost(tmp_path: Path, tiny_bundle: Path, other: Path, quick: None) -> None:
    """The cloud is down, or frames of the old model wait, or the cloud does not decode the new one."""

    stage, old = Staging(tmp_path / "bundles"), Bundle.load(tiny_bundle).digest
    async with edge(tmp_path, tiny_bundle, "127.0.0.1:1") as service:
        await service.take(picture(), EncodeRequest())
    name = stage.stage(other)
    async with serving(FakeCloud()) as address, edge(tmp_path, tiny_bundle, address) as service:
        assert service.encoder.bundle.digest == old and stage.state.trial == name  # one old frame waits
        while service.spool.pending_frames:
            await asyncio.sleep(0.01)
    async with edge(tmp_path, tiny_bundle, "127.0.0.1:1") as service:  # the cloud cannot be asked
        assert service.encoder.bundle.digest == old and stage.state.trial == name
    assert stage.state.starts == 0
    async with serving(FakeCloud(digest=old)) as address, edge(tmp_path, tiny_bundle, address) as service:
        assert service.encoder.bundle.digest == old
        assert stage.state.trial == "" and "does not decode" in stage.state.refused


async def test_a_spool_that_cannot_be_read_is_not_the_bundles_fault(
    tmp_path: Path, tiny_bundle: Path, other: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, old = Staging(tmp_path / "bundles"), Bundle.load(tiny_bundle).digest
    name = stage.stage(other)

    def fails(spool: Spool) -> None:
        raise SpoolError("the disk fails")

    monkeypatch.setattr(Spool, "oldest", fails)
    async with edge(tmp_path, tiny_bundle, "") as service:
        assert service.encoder.bundle.digest == old
    assert stage.state.trial == name and stage.state.refused == ""


async def test_a_rejected_frame_or_too_many_starts_end_the_trial(
    tmp_path: Path, tiny_bundle: Path, other: Path, quick: None
) -> None:
    stage, old = Staging(tmp_path / "bundles"), Bundle.load(tiny_bundle).digest
    cloud = FakeCloud()
    async with serving(cloud) as address:
        stage.stage(other)
        async with edge(tmp_path, tiny_bundle, address) as service:
            cloud.rejects_all = True
            await post(service, 0)
            assert service.restart.is_set() and "rejected" in stage.state.refused
        cloud.rejects_all = False
        async with edge(tmp_path, tiny_bundle, address) as service:
            assert service.encoder.bundle.digest == old
        stage.stage(other)
        for _ in range(TRIAL_STARTS):
            async with edge(tmp_path, tiny_bundle, address) as service:
                assert service.trial.on
        async with edge(tmp_path, tiny_bundle, address) as service:
            assert service.encoder.bundle.digest == old and "not confirmed within" in stage.state.refused


def test_a_damaged_state_file_is_no_reason_to_stay_down(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for text in ('{"current": ', '{"current": ' * 100_000, "[]"):
        caplog.clear()
        (tmp_path / "state.json").write_text(text)
        assert Staging(tmp_path).state == staging.BundleState()
        assert "cannot be read" in caplog.text


async def test_the_service_ends_with_75_when_the_trial_fails(
    tmp_path: Path, tiny_bundle: Path, other: Path, start_edge: StartEdge, quick: None
) -> None:
    Staging(tmp_path / "bundles").stage(other)
    cloud = FakeCloud(rejects_all=True)
    async with serving(cloud) as address:
        changed = {"AEIC_EDGE_CLOUD_ADDRESS": address, "AEIC_EDGE_BUNDLES_DIR": str(tmp_path / "bundles")}
        box = await asyncio.to_thread(start_edge, **changed)
        async with httpx.AsyncClient() as client:
            await client.post(f"{box.url}/v1/frames", content=picture())
        assert await asyncio.to_thread(box.process.wait, 15) == 75
        box = await asyncio.to_thread(start_edge, **changed)
        assert (await asyncio.to_thread(box.stop, signal.SIGTERM))[0] == 0


def test_confirming_a_bundle_leaves_what_another_process_is_staging(tmp_path: Path, other: Path, quick: None) -> None:
    stage = Staging(tmp_path)
    name = stage.stage(other)
    incoming, abandoned, old = tmp_path / ".incoming-other", tmp_path / ".incoming-old", tmp_path / "0123456789abcdef"
    for folder in incoming, abandoned, old:
        folder.mkdir()
    os.utime(abandoned, (1_700_000_000, 1_700_000_000))
    assert stage.begin_trial() == name
    stage.confirm()
    assert stage.state.current == name and (tmp_path / name).is_dir()
    assert incoming.is_dir() and not abandoned.exists() and not old.exists()


def test_aeic_bundle_is_the_same_command(tmp_path: Path, tiny_bundle: Path) -> None:
    def aeic(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "aeic_tools.cli", "bundle", *arguments]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)

    folder = str(tmp_path / "bundles")
    for arguments, more in (
        (("stage", str(tiny_bundle), "--dir", folder), {}),
        (("--dir", folder, "status"), {}),
        (("status",), {"AEIC_EDGE_BUNDLES_DIR": folder}),
    ):
        done = aeic(*arguments, **more)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["trial"] and not json.loads(done.stdout)["current"]
    assert json.loads(aeic("rollback", "--dir", folder).stdout)["refused"].endswith("rolled back by the operator")
    assert aeic("status").returncode == 2
    assert aeic("stage", str(tmp_path), "--dir", folder).returncode == 5
