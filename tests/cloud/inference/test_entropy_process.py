"""Entropy decoding in the decoder process, torch on the CPU in the place of a card; and several decoder processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from aeic.bundle import Bundle
from aeic.errors import BitstreamError, Damaged
from cloud_decoder.errors import DecoderDied, DeviceUnavailable
from cloud_decoder.inference import subprocess_backend
from cloud_decoder.inference.backend import EntropyDecoded
from cloud_decoder.inference.decoder import Decoder, DecoderSettings
from cloud_decoder.inference.devices import build_entropy, choose_device, choose_devices
from cloud_decoder.inference.subprocess_backend import ChildState, SharedBuffer, SubprocessGenerator
from cloud_decoder.inference.subprocess_child import DEVICE_EXIT, Child
from cloud_decoder.worker import pipeline
from tests.support.cloud.cloud import FakeGenerator, metric, running_cloud
from tests.support.frames import MakeFrame, frame_maker, new_frame
from tests.support.models.exact_models import write_exact_bundle
from tests.support.roots import ROOT
from tests.support.waiting import until


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_exact_bundle(tmp_path_factory.mktemp("exact"), integers=True))


@pytest.fixture(scope="module")
def exact_frame(exact: Bundle) -> MakeFrame:
    return frame_maker(exact)


SETTINGS = DecoderSettings(threads=1, max_batch=4, isolate=True, entropy="device", entropy_check_frames=4)


@pytest.fixture(scope="module")
def on_device(exact: Bundle) -> Iterator[Decoder]:
    decoder = Decoder.from_bundle(exact.path, "onnx", SETTINGS)
    yield decoder
    decoder.close()


def await_another(generator: SubprocessGenerator, pid: int) -> None:
    """Wait until a child other than ``pid`` is ready."""
    end = time.monotonic() + 120
    while generator.pid in (pid, None) or generator.state is not ChildState.READY:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_child_decodes_what_the_cpu_does(on_device: Decoder, exact_frame: MakeFrame) -> None:
    frames = [exact_frame(seed) for seed in range(5)]
    assert on_device.entropy_batch == 8 and on_device.warnings == []
    for _ in range(2):  # the second time on the device
        outcomes = on_device.entropy_decode_many([*frames, frames[0][:-6] + bytes(6), b"no frame"])
        for frame, outcome in zip(frames, outcomes, strict=False):
            wanted = on_device.entropy_decode(frame)
            assert isinstance(outcome, EntropyDecoded) and outcome.digest == wanted.digest
            assert np.array_equal(outcome.y_hat, wanted.y_hat)
        assert isinstance(outcomes[5], Damaged) and type(outcomes[6]) in BitstreamError.__subclasses__()
    counts = on_device.take_counts()
    assert counts["entropy_device"] == 6 and counts["entropy_checked"] == 1 and counts["entropy_mismatches"] == 0
    assert on_device.take_counts().get("entropy_device", 0) == 0


def test_a_lost_child_harms_no_frame(exact: Bundle, exact_frame: MakeFrame) -> None:
    decoder = Decoder.from_bundle(exact.path, "onnx", SETTINGS)
    frame = exact_frame(1)
    decoder.warm_up()
    victim = decoder._generator.pid  # type: ignore[attr-defined]  # it is a SubprocessGenerator
    os.kill(victim, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (victim, signal.SIGKILL))
    killer.start()
    (outcome,) = decoder.entropy_decode_many([frame])
    assert isinstance(outcome, EntropyDecoded) and outcome.digest == decoder.entropy_decode(frame).digest
    killer.join()
    await_another(decoder._generator, victim)  # type: ignore[arg-type]  # it is a SubprocessGenerator
    (outcome,) = decoder.entropy_decode_many([frame])
    assert isinstance(outcome, EntropyDecoded) and decoder.take_counts()["entropy_cpu"] == 1
    decoder.close()


def test_a_child_that_hangs_on_entropy_is_killed(exact: Bundle, exact_frame: MakeFrame) -> None:
    generator = SubprocessGenerator(exact.path, "onnx", 1, batch_seconds=0.4, entropy="torch")
    hung = generator.pid or 0
    os.kill(hung, signal.SIGSTOP)
    assert generator.entropy_decode([exact_frame(1)]) is None
    generator._batch_seconds = 60
    await_another(generator, hung)
    assert generator(np.zeros((1, exact.channels, 2, 2), np.float32)).shape == (1, 3, 64, 64)
    generator.close()


def test_a_late_answer_is_not_taken_for_that_of_other_frames(
    exact: Bundle, exact_frame: MakeFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child answers between the end of the wait and its own: the next caller must not meet that answer."""
    generator = SubprocessGenerator(exact.path, "onnx", 1, entropy="torch")
    try:
        child = generator._child
        assert child is not None and child.entropy is not None

        def late(seconds: float | None = None) -> None:
            raise TimeoutError

        killed: list[int] = []
        monkeypatch.setattr(child.process, "kill", lambda: killed.append(1))  # it takes a moment
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(child.entropy.control, "receive", late)
            assert generator.entropy_decode([exact_frame(1)]) is None and killed
        assert generator.entropy_decode([exact_frame(2)]) is None
    finally:
        monkeypatch.undo()
        generator.close()


def test_a_mismatch_moves_entropy_to_the_cpu_for_good(exact: Bundle, exact_frame: MakeFrame) -> None:
    generator = SubprocessGenerator(exact.path, "onnx", 1, entropy="torch")
    decoder = Decoder(exact, generator, settings=SETTINGS)
    assert generator._child is not None and generator._child.entropy is not None
    channel = generator._child.entropy
    answer = {
        "outcomes": [{"failed": "Damaged", "what": "x"}],
        "counts": {"entropy_mismatches": 1},
        "reason": "known answers differ",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel.control, "receive", lambda seconds: answer)
        decoder.entropy_decode_many([exact_frame(1)])
    assert decoder.entropy_batch == 1 and "known answers differ" in decoder.warnings[0]
    assert decoder.take_counts()["entropy_mismatches"] == 1
    (outcome,) = decoder.entropy_decode_many([exact_frame(1)])
    assert isinstance(outcome, EntropyDecoded)
    victim = generator._child.process
    victim.kill()
    victim.wait()
    await_another(generator, victim.pid)
    decoder.decode([exact_frame(1)])
    assert decoder.entropy_batch == 1, "a new child is not trusted either"
    decoder.close()


async def test_the_service_decodes_entropy_in_batches_and_says_when_it_stops(
    exact: Bundle, exact_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder.from_bundle(exact.path, "onnx,onnx", SETTINGS)
    new = [new_frame(exact_frame(seed)) for seed in range(24)]
    asked: list[int] = []
    many = decoder.entropy_decode_many

    def counted(frames: Sequence[bytes]) -> Any:
        asked.append(len(frames))
        return many(frames)

    monkeypatch.setattr(decoder, "entropy_decode_many", counted)
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http, timeout=60) as http:
        cloud.store.frames.add(new, time.time())
        cloud.backend.wake()
        answers = await asyncio.gather(*(http.post("/v1/decode", content=exact_frame(s)) for s in range(50, 56)))
        assert {answer.status_code for answer in answers} == {200}
        await until(lambda: cloud.store.frames.counts()["done"] == len(new))
        assert max(asked) > 1 and sum(asked) == 30
        assert metric(cloud.metrics, "entropy_frames_total", where="device") > 0
        assert metric(cloud.metrics, "entropy_mismatches_total") == 0
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        for generator in decoder._generators:
            monkeypatch.setattr(generator, "_entropy_off", "the latents of a frame differ")
        ready = await http.get("/readyz")
        assert ready.status_code == 200 and "the latents of a frame differ" in ready.json()["warnings"][0]
        assert (await http.post("/v1/decode", content=exact_frame(99))).status_code == 200
    for row in new:
        assert decoder.entropy_decode(row.bitstream)


# -- devices ----------------------------------------------------------------------------------------------------------


def test_devices_are_chosen_by_name() -> None:
    assert choose_devices("cuda:0, cuda:1") == ["cuda:0", "cuda:1"] and choose_device("cuda:7") == "cuda:7"
    for wrong in ("cuda:", "cuda:x", "cuda0", "", "cpu,", "gpu"):
        with pytest.raises(ValueError, match="unknown device"):
            choose_devices(wrong)
    with pytest.raises(ValueError, match="AEIC_CLOUD_ISOLATE"):
        Decoder.from_bundle(None, "onnx,onnx", DecoderSettings(isolate=False))


class TwoFakes(Decoder):
    """Two generators that a test controls."""

    def __init__(self, bundle: Bundle) -> None:
        self.fakes = FakeGenerator(bundle), FakeGenerator(bundle)
        super().__init__(bundle, *self.fakes, settings=DecoderSettings(threads=1, max_batch=2))


async def test_two_devices_take_from_one_queue(bundle: Bundle, make_frame: MakeFrame, tmp_path: Path) -> None:
    decoder = TwoFakes(bundle)
    new = [new_frame(make_frame(seed, 3000, 1000)) for seed in range(4)]  # in tiles, which both share
    expected = [decoder.decode([one.bitstream])[0] for one in new]
    for fake in decoder.fakes:
        fake.batches.clear()
        fake.seconds = 0.02
    async with running_cloud(decoder, tmp_path) as cloud:
        jobs = [asyncio.create_task(cloud.backend.decode(one.bitstream, timeout=60)) for one in new]
        pictures = [decoded.picture for decoded in await asyncio.gather(*jobs)]
    assert all((one == other).all() for one, other in zip(pictures, expected, strict=True))
    assert all(len(fake.batches) >= 3 for fake in decoder.fakes)


async def test_a_device_that_does_not_come_back_is_left_out(
    bundle: Bundle, make_frame: MakeFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "LANE_SECONDS", 0.5)
    decoder = TwoFakes(bundle)
    broken = threading.Event()
    works = FakeGenerator.__call__

    def call(fake: FakeGenerator, y_hat: np.ndarray) -> np.ndarray:
        if fake is decoder.fakes[1] and broken.is_set():
            raise DeviceUnavailable("it does not start")
        time.sleep(0.01)
        return works(fake, y_hat)

    monkeypatch.setattr(FakeGenerator, "__call__", call)
    new = [new_frame(make_frame(seed)) for seed in range(30)]
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http, timeout=60) as http:
        broken.set()
        cloud.store.frames.add(new, time.time())
        cloud.backend.wake()
        await until(lambda: "device 1 does not work: it does not start" in cloud.readiness.warnings)
        assert (await http.get("/readyz")).status_code == 200
        await until(lambda: cloud.store.frames.counts()["done"] == len(new))
        broken.clear()
        await until(lambda: not cloud.backend.warnings)
        before = len(decoder.fakes[1].batches)
        for seed in range(40, 60):
            await asyncio.gather(*(cloud.backend.decode(make_frame(seed * 10 + n), timeout=20) for n in range(4)))
            if len(decoder.fakes[1].batches) > before:
                break
        assert len(decoder.fakes[1].batches) > before
        assert not cloud.backend.failure and cloud.store.frames.counts()["failed"] == 0


# -- failures ---------------------------------------------------------------------------------------------------------


class FailedDevice:
    """Raises what a faulty kernel does; nothing on its device works after that."""

    usable = False

    def __call__(self, y_hat: np.ndarray) -> np.ndarray:
        raise RuntimeError("unspecified launch failure")


def test_a_child_reports_a_device_that_works_no_more() -> None:
    inbox, y_hat = SharedBuffer(), np.zeros((1, 8, 4, 4), np.float32)
    inbox.write(y_hat)
    child = Child(inbox, SharedBuffer())
    child._generator = FailedDevice()  # type: ignore[assignment]  # only what `answer` calls
    assert child.answer({"shape": list(y_hat.shape), "pictures": False})["failed"] == "device"


def test_a_device_that_fails_with_tritons_kernels_starts_with_those_of_torch(
    exact: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faulty kernel would end every process at its start."""
    asked: list[str] = []
    receive = subprocess_backend.Control.receive

    def answered(self: subprocess_backend.Control, seconds: float) -> dict[str, Any] | None:
        answer = receive(self, seconds)
        if "entropy" in (answer or {}) and asked[-1] == "triton":
            return {"failed": "RuntimeError", "what": "CUDA error: an illegal memory access was encountered"}
        return answer

    def send(self: subprocess_backend.Control, message: dict[str, Any]) -> None:
        asked.extend([message["kernels"]] if "kernels" in message else [])
        sent(self, message)

    sent = subprocess_backend.Control.send
    monkeypatch.setattr(subprocess_backend.Control, "receive", answered)
    monkeypatch.setattr(subprocess_backend.Control, "send", send)
    generator = SubprocessGenerator(exact.path, "onnx", 1, entropy="triton", check_every=4)
    assert asked == ["triton", "torch"] and generator.state is ChildState.READY
    generator.close()


def test_a_child_that_cannot_hand_its_latents_over_says_so(exact: Bundle, exact_frame: MakeFrame) -> None:
    """Without an answer the service would wait for the whole time limit of a batch, and kill it."""

    class Full(SharedBuffer):
        def write(self, array: np.ndarray) -> None:
            raise OSError("Cannot allocate memory")

    inbox, frame = SharedBuffer(), exact_frame(1)
    inbox.write(np.frombuffer(frame, np.uint8))
    child = Child(SharedBuffer(), SharedBuffer())
    child._entropy = build_entropy(exact, "cpu", 1, 0)
    answer = child.decode_entropy({"frames": [len(frame)]}, inbox, Full())
    assert answer == {"failed": "OSError", "what": "Cannot allocate memory"}


def test_close_ends_a_child_that_is_being_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its predecessor died, and its process appears late: after close has looked for one to kill."""
    monkeypatch.setattr(subprocess_backend, "CLOSE_SECONDS", 0.05)

    class Loading:
        """A process with these answers; then it loads until it is killed."""

        entropy = None

        def __init__(self, *answers: dict[str, object]) -> None:
            self.answers, self.killed = list(answers), threading.Event()
            self.process = self.control = self

        def send(self, message: dict[str, object]) -> None: ...

        def receive(self, seconds: float) -> dict[str, object] | None:
            if self.answers:
                return self.answers.pop()
            self.killed.wait(seconds)
            return None

        def wait(self) -> None:
            self.killed.wait(60)

        def kill(self) -> None:
            self.killed.set()

        def end(self, seconds: float) -> str:
            self.kill()
            return "signal 9"

    first, second, starting, looked = Loading({"loaded": True}), Loading(), threading.Event(), threading.Event()
    children = [first, second]

    def spawn(self: SubprocessGenerator) -> Loading:
        if len(children) == 1:
            starting.set()
            assert looked.wait(30)
        return children.pop(0)

    monkeypatch.setattr(SubprocessGenerator, "_spawn", spawn)
    generator = SubprocessGenerator(tmp_path, "onnx", 1)
    first.kill()
    assert starting.wait(30)
    closing = threading.Thread(target=generator.close, daemon=True)
    closing.start()
    closing.join(0.3)
    looked.set()
    closing.join(20)
    assert not closing.is_alive() and second.killed.is_set() and generator.state is ChildState.CLOSED


def test_an_answer_that_nobody_waited_for_is_not_the_next_batchs(bundle: Bundle) -> None:
    """Someone interrupts a cell of a notebook, and runs the next one."""
    generator = SubprocessGenerator(bundle.path, "onnx", 1)
    try:
        rng = np.random.default_rng(0)
        first, second = (rng.standard_normal((1, bundle.channels, side, side)).astype(np.float32) for side in (4, 2))
        wanted = generator.pictures(second).copy()
        child = generator._child
        assert child is not None

        def interrupted(seconds: float | None = None) -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(child.control, "receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                generator.pictures(first)
        assert np.array_equal(generator.pictures(second), wanted)
        assert np.array_equal(generator.pictures(second), wanted)
    finally:
        generator.close()


def test_the_child_ends_and_another_one_starts(bundle: Bundle, make_frame: MakeFrame, tmp_path: Path) -> None:
    """A generator that fails once, in the process that the service starts: by a module on its path."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib\n"
        "from cloud_decoder.inference import onnx_backend\n"
        f"mark = pathlib.Path({str(tmp_path / 'failed')!r})\n"
        "call = onnx_backend.OnnxGenerator.__call__\n"
        "def fails_once(self, y_hat):\n"
        "    if y_hat.shape[2] > 4 and not mark.exists():\n"
        "        mark.touch()\n"
        "        type(self).usable = False\n"
        "        raise RuntimeError('unspecified launch failure')\n"
        "    return call(self, y_hat)\n"
        "onnx_backend.OnnxGenerator.__call__ = fails_once\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        generator = SubprocessGenerator(bundle.path, "onnx", 1)
        decoder = Decoder(bundle, generator, settings=DecoderSettings(threads=1))
        assert generator._child is not None
        child, frame = generator._child.process, make_frame(1, 192, 192)
        with pytest.raises(DecoderDied, match="the device failed"):
            decoder.decode([frame])
        assert child.wait(5) == DEVICE_EXIT
        assert decoder.decode([frame])[0].shape == (192, 192, 3)
        assert generator.pid != child.pid
        decoder.close()


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_child_logs_in_the_form_and_from_the_level_of_the_service(
    form: str, bundle: Bundle, tmp_path: Path
) -> None:
    """What a generator logs in the child, and what a library in C writes there."""
    (tmp_path / "sitecustomize.py").write_text(
        "import logging, os\n"
        "from cloud_decoder.inference import onnx_backend\n"
        "def warm_up(self, *rest):\n"
        "    logging.getLogger('a.kernel').debug('too much')\n"
        "    logging.getLogger('a.kernel').info('it is\\nused')\n"
        "    logging.getLogger().handlers[0].flush()\n"
        "    os.write(2, b'native\\n')\n"
        "onnx_backend.OnnxGenerator.warm_up = warm_up\n"
    )
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom aeic_service import logs\n"
        "from cloud_decoder.inference.subprocess_backend import SubprocessGenerator\n"
        f"logs.set_up('info', {form!r})\n"
        "generator = SubprocessGenerator(Path(sys.argv[1]), 'onnx', 1)\n"
        "generator.warm_up(1)\ngenerator.close()\ntime.sleep(0.5)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", program, str(bundle.path)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=120, check=True
    )
    lines = done.stderr.splitlines()
    assert "too much" not in done.stderr
    if form == "text":
        assert re.fullmatch(r"\d{4}-\S+ \S+ INFO    it is\\nused", lines[0]) and lines[1:] == ["native"]
        return
    used, native = map(json.loads, lines)
    assert (used["logger"], used["level"], used["event"]) == ("a.kernel", "info", "it is\nused")
    assert (native["logger"], native["level"], native["event"]) == ("stderr", "warning", "native")


async def test_a_picture_that_is_not_finite_is_refused(
    decoder: Decoder, generator: FakeGenerator, make_frame: MakeFrame, tmp_path: Path
) -> None:
    frame = make_frame(1)
    async with running_cloud(decoder, tmp_path) as cloud, httpx.AsyncClient(base_url=cloud.http, timeout=60) as http:
        generator._inner = lambda y_hat: np.full((len(y_hat), 3, 128, 128), np.nan, np.float32)
        answer = await http.post("/v1/decode", content=frame)
        assert answer.status_code == 422 and "FloatingPointError" in answer.json()["detail"]
