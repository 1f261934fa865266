"""Pictures that are read in another process: the same pixels and errors, and a lost process costs one picture."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from aeic.errors import InputError
from aeic.pixels import load_picture, picture_exif, picture_size
from aeic_service.host_limits import HostLimits
from aeic_service.http import problems
from edge_encoder.encoding import PictureProcessChoice, picture_reader
from edge_encoder.encoding.picture_reader import PictureReader
from edge_encoder.errors import PictureReaderLost, ReaderUnavailable, is_of_the_machine
from edge_encoder.service import EdgeService
from tests.support.edge import crashing_reader
from tests.support.edge.fakes import settings
from tests.support.pictures import BAD, GOOD, picture
from tests.support.roots import ROOT
from tests.support.waiting import wait_until

MOST = 8192 * 8192
PNG = picture(form="PNG")
WEBP = picture(form="WEBP")
FILES = {path.name: path.read_bytes() for path in sorted((ROOT / "tests/aeic/picture_files/pictures").iterdir())}

MakeReader = Callable[..., PictureReader]


@pytest.fixture
def make_reader(tmp_path: Path) -> Iterator[MakeReader]:
    """Readers whose children have faults (tests/support/edge/crashing_reader.py); none is left at the end."""
    made: list[PictureReader] = []

    def make(choice: PictureProcessChoice = "auto", at_once: int = 1, lost: list[str] | None = None) -> PictureReader:
        note = (lambda reason: None) if lost is None else lost.append
        made.append(PictureReader(choice, at_once, lost=note, command=crashing_reader.command(tmp_path)))
        return made[-1]

    yield make
    for reader in made:
        reader.close()
        assert reader.pids == set()


def with_exif(form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    return picture(form=form, exif=exif)


def heif() -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.open(io.BytesIO(PNG))).save(file)
    return file.getvalue()


def sixteen_bits() -> bytes:
    file = io.BytesIO()
    grey = (np.arange(64 * 96, dtype=np.uint16) * 10).reshape(64, 96)
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def outcome(read: Callable[[], object]) -> object:
    try:
        result = read()
    except InputError as error:
        return type(error), str(error)
    return result.tobytes() if isinstance(result, np.ndarray) else result


def test_every_kind_of_file_has_the_same_pixels_size_exif_and_errors() -> None:
    files = {**GOOD, **FILES, **{name: data for name, (data, _, _) in BAD.items()}}
    files |= {"16 bits": sixteen_bits(), "avif": picture(form="AVIF"), "cut avif": picture(form="AVIF")[:-100]}
    files |= {f"exif {form}": with_exif(form) for form in ("JPEG", "PNG", "WEBP", "AVIF")}
    reader = PictureReader("always")
    try:
        for name, data in files.items():
            for most in (MOST, 5000):
                for stretch in (False, True):
                    expected = outcome(lambda: load_picture(data, max_pixels=most, stretch=stretch))  # noqa: B023
                    got = outcome(lambda: reader.load(data, max_pixels=most, stretch=stretch))  # noqa: B023
                    assert got == expected, name
                size = outcome(lambda: picture_size(data, max_pixels=most))  # noqa: B023
                assert outcome(lambda: reader.size(data, max_pixels=most)) == size, name  # noqa: B023
            exif = outcome(lambda: dict(picture_exif(data)))  # noqa: B023
            assert outcome(lambda: dict(reader.exif(data))) == exif, name  # noqa: B023
        assert len(reader.pids) == 1
    finally:
        reader.close()


def test_heif_has_the_same_pixels() -> None:
    data, reader = heif(), PictureReader("auto")
    try:
        assert np.array_equal(reader.load(data, max_pixels=MOST), load_picture(data))
        assert reader.size(data, max_pixels=MOST) == (96, 64)
        assert len(reader.pids) == 1
    finally:
        reader.close()


def test_an_ordinary_jpeg_needs_no_process_and_every_other_picture_does(make_reader: MakeReader) -> None:
    reader = make_reader()
    for data in (picture(), picture(mode="L"), picture(mode="CMYK"), FILES["icc_p3.jpg"]):
        reader.load(data, max_pixels=MOST)
        reader.size(data, max_pixels=MOST)
    for data, *_ in BAD.values():
        if not data.startswith((b"\x89PNG", b"RIFF")):
            with pytest.raises(InputError):
                reader.load(data, max_pixels=MOST)
    reader.size(PNG, max_pixels=MOST)
    assert reader.pids == set()
    for data in (picture(progressive=True), FILES["non_interleaved.jpg"], PNG, WEBP, picture(form="AVIF")):
        reader = make_reader()
        reader.load(data, max_pixels=MOST)
        assert len(reader.pids) == 1
    reader = make_reader("never")
    reader.load(WEBP, max_pixels=MOST)
    assert reader.pids == set()


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        (crashing_reader.CRASH, "crash", "crashed (signal 11)"),
        (crashing_reader.HANG, "deadline", "too long"),
        (crashing_reader.EXHAUST, "memory", "memory"),
        (crashing_reader.KILLED, "crash", "crashed (signal 9)"),
    ],
)
def test_a_lost_process_costs_one_picture(
    make_reader: MakeReader,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: bytes,
    reason: str,
    words: str,
) -> None:
    lost: list[str] = []
    reader = make_reader(lost=lost)
    reader.load(PNG, max_pixels=MOST)
    before = reader.pids
    if reason == "deadline":
        monkeypatch.setattr(picture_reader, "read_seconds", lambda pixels: 0.2)
    with pytest.raises(PictureReaderLost, match="ordinary JPEG") as caught:
        reader.load(PNG + b"." + fault, max_pixels=MOST)
    monkeypatch.undo()
    assert words in str(caught.value) and not is_of_the_machine(caught.value)
    assert json.loads(bytes(problems.problem_of(caught.value).body))["type"] == "urn:aeic:undecodable"
    assert lost == [reason] and len(caplog.records) == 1
    assert np.array_equal(reader.load(PNG, max_pixels=MOST), load_picture(PNG))
    assert len(reader.pids) == 1 and reader.pids != before
    assert not any(psutil.pid_exists(pid) for pid in before)


def test_a_picture_takes_no_more_memory_than_the_box_has_for_one() -> None:
    file, lost = io.BytesIO(), list[str]()
    Image.new("RGB", (3000, 3000)).save(file, "PNG")
    reader = PictureReader("auto", most_bytes=16 << 20, lost=lost.append)
    try:
        with pytest.raises(PictureReaderLost, match="memory"):
            reader.load(file.getvalue(), max_pixels=MOST)
        assert lost == ["memory"]
        assert np.array_equal(reader.load(PNG, max_pixels=MOST), load_picture(PNG))
    finally:
        reader.close()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_of_the_largest_size_is_read(mode: str) -> None:
    file, reader = io.BytesIO(), PictureReader("auto")
    Image.new(mode, (8192, 4096), (9, 99, 199, 255)[: len(mode)]).save(file, "WEBP", lossless=True, quality=0, method=0)
    try:
        assert reader.size(file.getvalue(), max_pixels=MOST) == (8192, 4096)
        assert not reader.exif(file.getvalue())
        assert reader.load(file.getvalue(), max_pixels=MOST)[0, 0].tolist() == [9, 99, 199]
    finally:
        reader.close()


def test_a_small_picture_does_not_lower_the_limit_of_a_large_one_where_the_system_limits_memory_too() -> None:
    pytest.importorskip("resource")
    code = (
        "import resource, sys\n"
        "from edge_encoder.encoding import picture_process as process\n"
        "most = process._private_bytes() + (400 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (most, most))\n"
        "sys.exit(process.main(sys.argv[1:]))\n"
    )
    file, reader = io.BytesIO(), PictureReader("auto", command=(sys.executable, "-c", code))
    Image.new("RGB", (6000, 4000)).save(file, "PNG", compress_level=1)
    try:
        reader.load(PNG, max_pixels=MOST)
        assert reader.load(file.getvalue(), max_pixels=MOST).shape == (4000, 6000, 3)
    finally:
        reader.close()


def test_avif_has_few_threads_on_a_machine_of_many_cores() -> None:
    code = (
        "import os, sys\n"
        "os.sched_getaffinity = lambda pid: set(range(256))\n"
        "from edge_encoder.encoding import picture_process as process\n"
        "sys.exit(process.main(sys.argv[1:]))\n"
    )
    reader = PictureReader("auto", command=(sys.executable, "-c", code))
    try:
        reader.load(picture(form="AVIF"), max_pixels=MOST)
    finally:
        reader.close()


async def test_a_head_that_is_asked_for_after_the_end_is_answered_with_it() -> None:
    reader = PictureReader("auto")
    reader.close()
    with pytest.raises(ReaderUnavailable, match="stopping"):
        await reader.size_in_turn(WEBP, max_pixels=MOST)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_what_every_box_takes_is_read_on_the_smallest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr("edge_encoder.service.HostLimits.read", lambda: HostLimits(None, 512 << 20))
    service = EdgeService(settings(tmp_path))
    noise = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3 if form == "JPEG" else 4), np.uint8) >> 4
    options = {"PNG": {"compress_level": 0}, "WEBP": {"lossless": True, "quality": 0, "method": 0}}
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form, **options.get(form, {"progressive": True, "quality": 95, "subsampling": 0}))
    try:
        assert service.max_pixels == 2048 * 2048
        assert service.reader.load(file.getvalue(), max_pixels=service.max_pixels).shape == (2048, 2048, 3)
        assert service.reader.pids
    finally:
        service.reader.close()


def test_a_crash_at_the_head_of_a_file_costs_the_process_only(make_reader: MakeReader) -> None:
    lost: list[str] = []
    reader = make_reader(lost=lost)
    with pytest.raises(PictureReaderLost):
        reader.size(WEBP + b"." + crashing_reader.CRASH_AT_HEAD, max_pixels=MOST)
    assert reader.size(WEBP, max_pixels=MOST) == (96, 64)
    assert lost == ["crash"]


def test_a_process_that_is_killed_from_outside_is_not_the_pictures_fault(make_reader: MakeReader) -> None:
    lost: list[str] = []
    reader = make_reader(lost=lost)
    reader.load(PNG, max_pixels=MOST)
    (pid,) = reader.pids
    os.kill(pid, signal.SIGKILL)  # between two pictures
    reader.load(PNG, max_pixels=MOST)
    reader.load(PNG + b"." + crashing_reader.KILLED_ONCE, max_pixels=MOST)
    assert lost == [] and pid not in reader.pids


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's times of processes")
def test_a_process_that_was_stopped_is_not_the_pictures_fault(
    make_reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    reader = make_reader(lost=lost)
    reader.load(PNG, max_pixels=MOST)
    (pid,) = reader.pids
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(picture_reader, "HEAD_SECONDS", 3.0)
    assert np.array_equal(reader.load(PNG, max_pixels=MOST), load_picture(PNG))
    assert lost == [] and pid not in reader.pids


def test_a_picture_that_keeps_its_process_busy_for_too_long_is_read_once(
    make_reader: MakeReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost: list[str] = []
    reader = make_reader(lost=lost)
    reader.load(PNG, max_pixels=MOST)
    monkeypatch.setattr(picture_reader, "read_seconds", lambda pixels: 1.0)
    with pytest.raises(PictureReaderLost, match="too long"):
        reader.load(PNG + b"." + crashing_reader.BUSY, max_pixels=MOST)
    assert lost == ["deadline"] and len((tmp_path / "busy").read_bytes()) == 1


def test_memory_that_the_system_refuses_is_not_the_pictures_fault() -> None:
    pytest.importorskip("resource")
    code = (
        "import resource, sys\n"
        "from edge_encoder.encoding import picture_process as process\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "sys.exit(process.main(sys.argv[1:]))\n"
    )
    lost: list[str] = []
    reader = PictureReader("auto", lost=lost.append, command=(sys.executable, "-c", code))
    with pytest.raises(ReaderUnavailable, match="too large"):
        reader.load(PNG, max_pixels=MOST)
    assert lost == [] and reader.pids == set()
    reader.close()


@pytest.mark.parametrize("command", [("/nowhere/python",), (sys.executable, "-c", "raise SystemExit(3)")])
def test_a_process_that_does_not_start_is_the_boxs_fault(command: tuple[str, ...]) -> None:
    lost: list[str] = []
    reader = PictureReader("auto", lost=lost.append, command=command)
    with pytest.raises(ReaderUnavailable, match="AEIC_EDGE_PICTURE_PROCESS") as caught:
        reader.load(PNG, max_pixels=MOST)
    assert is_of_the_machine(caught.value) and not isinstance(caught.value, InputError)
    assert lost == [] and reader.pids == set()
    reader.command = picture_reader.COMMAND
    reader.load(PNG, max_pixels=MOST)
    reader.close()


def test_no_descriptors_are_left_and_their_shortage_is_the_boxs_fault(make_reader: MakeReader) -> None:
    resource = pytest.importorskip("resource")
    reader = make_reader()
    reader.load(PNG, max_pixels=MOST)
    process = psutil.Process()
    before = process.num_fds()
    for _ in range(3):
        reader.load(PNG, max_pixels=MOST)
    assert process.num_fds() == before
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(ReaderUnavailable) as caught:
            reader.load(PNG, max_pixels=MOST)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert is_of_the_machine(caught.value)
    reader.load(PNG, max_pixels=MOST)


def test_a_slow_picture_does_not_hold_up_others(make_reader: MakeReader, tmp_path: Path) -> None:
    reader = make_reader(at_once=2)
    with ThreadPoolExecutor(3) as pool:
        slow = pool.submit(reader.load, PNG + b"." + crashing_reader.WAIT, max_pixels=MOST)
        wait_until(lambda: len(reader.pids) == 1)
        for _ in range(3):
            reader.load(PNG, max_pixels=MOST)
            reader.load(picture(), max_pixels=MOST)
        assert not slow.done() and len(reader.pids) == 2
        second = pool.submit(reader.load, PNG + b"." + crashing_reader.WAIT, max_pixels=MOST)
        third = pool.submit(reader.load, PNG, max_pixels=MOST)  # all children are busy
        assert len(reader.pids) == 2
        (tmp_path / "go").touch()
        for one in (slow, second, third):
            assert np.array_equal(one.result(), load_picture(PNG))
    assert len(reader.pids) == 2


def test_a_head_does_not_wait_for_pixels(make_reader: MakeReader, tmp_path: Path) -> None:
    reader = make_reader()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(reader.load, PNG + b"." + crashing_reader.WAIT, max_pixels=MOST)
        wait_until(lambda: len(reader.pids) == 1)
        try:
            assert reader.size(WEBP, max_pixels=MOST) == (96, 64) and not reader.exif(WEBP)
            assert not slow.done()
        finally:
            (tmp_path / "go").touch()
        assert np.array_equal(slow.result(), load_picture(PNG))


def test_idle_processes_end(make_reader: MakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make_reader()
    reader.load(PNG, max_pixels=MOST)
    (pid,) = reader.pids
    reader.expire()
    assert reader.pids == {pid}
    monkeypatch.setattr(picture_reader, "IDLE_SECONDS", -1.0)
    reader.expire()
    assert reader.pids == set() and not psutil.pid_exists(pid)
    reader.load(PNG, max_pixels=MOST)
    monkeypatch.setattr(picture_reader, "LARGE_PIXELS", 96 * 64 - 1)
    reader.load(PNG, max_pixels=MOST)
    assert reader.pids == set(), "the analysis of a large picture has the memory of idle processes"
    monkeypatch.undo()
    reader.load(PNG, max_pixels=MOST)
    assert len(reader.pids) == 1


def test_closing_ends_a_process_that_hangs(make_reader: MakeReader) -> None:
    lost: list[str] = []
    reader = make_reader(at_once=2, lost=lost)
    reader.load(PNG, max_pixels=MOST)
    caught: list[Exception] = []

    def read() -> None:
        try:
            reader.load(PNG + b"." + crashing_reader.HANG, max_pixels=MOST)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: len(reader._busy) == 1)
    pids = reader.pids
    reader.close()
    thread.join()
    assert isinstance(caught[0], ReaderUnavailable) and is_of_the_machine(caught[0])
    assert lost == [] and reader.pids == set() and not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(ReaderUnavailable):
        reader.load(PNG, max_pixels=MOST)


@pytest.mark.parametrize("fault", [b"NONE", crashing_reader.HANG])
def test_nothing_is_left_behind_by_a_service_that_was_killed(tmp_path: Path, fault: bytes) -> None:
    (tmp_path / "short").touch()
    code = (
        "import sys, threading\n"
        "from edge_encoder.encoding.picture_reader import PictureReader\n"
        "from tests.support import pictures\nfrom tests.support.edge import crashing_reader\n"
        "from pathlib import Path\n"
        "reader = PictureReader('always', command=crashing_reader.command(Path(sys.argv[1])))\n"
        "data = pictures.picture(form='PNG')\n"
        "reader.load(data, max_pixels=10000)\n"
        "print(*reader.pids, flush=True)\n"
        "reader.load(data + b'.' + sys.argv[2].encode(), max_pixels=10000)\n"
        "threading.Event().wait()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), fault.decode()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        pid = int(service.stdout.readline())
        service.kill()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_no_module_is_taken_from_the_folder_in_which_the_service_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    reader = PictureReader("auto")
    try:
        reader.load(PNG, max_pixels=MOST)
    finally:
        reader.close()


def test_the_process_loads_no_onnx_runtime_and_gets_no_settings(
    make_reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys, edge_encoder.encoding.picture_process; print('onnxruntime' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["False"], run.stderr
    monkeypatch.setenv("AEIC_EDGE_TOKEN", "s3cret")
    reader = make_reader()
    reader.load(PNG, max_pixels=MOST)
    (pid,) = reader.pids
    environment = psutil.Process(pid).environ()
    assert "s3cret" not in str(environment) and environment["OPENBLAS_NUM_THREADS"] == "1"
