"""``aeic`` as a process: files, pipes, folders, the line on stderr, exit codes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aeic.bitstream import Frame
from aeic_tools.cli import app, main
from aeic_tools.command_line.measurements import MEASUREMENTS
from tests.support.roots import ROOT

FOREIGN = Frame(100, 70, 0, "000000", b"abc").to_bytes()  # of a bundle that is nowhere
Aeic = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def aeic(tiny_bundle: Path) -> Aeic:
    """Runs ``aeic`` with the tiny bundle."""
    environment = {**os.environ, "AEIC_BUNDLE": str(tiny_bundle)}

    def run(*arguments: object, stdin: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "aeic_tools.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, env={**environment, **more})

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A 100 x 70 JPEG with some structure."""
    rows, columns = np.mgrid[0:70, 0:100]
    pixels = np.stack([rows * 3, columns * 2, (rows + columns) % 256], -1).astype(np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    return path


def test_encode_info_decode_latents(aeic: Aeic, photo: Path, tmp_path: Path) -> None:
    frame, picture, npz = tmp_path / "photo.aeic", tmp_path / "back.png", tmp_path / "y.npz"
    done = aeic("encode", photo, frame)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    line = done.stderr.decode()
    size = frame.stat().st_size
    assert f"100x70, {size} bytes, {8 * size / 7000:.4f} bpp" in line and line.count("\n") == 1

    facts = json.loads(aeic("info", frame, "--json").stdout)
    assert (facts["width"], facts["height"], facts["bytes"], facts["model"]) == (100, 70, size, "tiny")
    assert "100x70" in aeic("info", frame).stdout.decode()

    done = aeic("decode", frame, picture)
    assert done.returncode == 0, done.stderr
    with Image.open(picture) as opened:
        assert (opened.size, opened.mode, opened.format) == ((100, 70), "RGB", "PNG")

    done = aeic("latents", frame, npz)
    assert done.returncode == 0, done.stderr
    with np.load(npz) as arrays:
        assert arrays["y_hat"].dtype == np.float32 and arrays["y_hat"].shape[1:] == (4, 4)
        assert hashlib.sha256(arrays["y_hat"].astype("<f4").tobytes()).hexdigest() == done.stdout.decode().strip()
        assert arrays["inverse_gains"].shape == arrays["y_hat"].shape[:1]
        assert arrays["symbols"].shape == arrays["y_hat"].shape and arrays["z_symbols"].shape == (4, 1, 1)
        assert arrays["size"].tolist() == [70, 100]
    assert aeic("latents", frame, "/dev/null", "-f").stdout == done.stdout


def test_pipes(aeic: Aeic, photo: Path) -> None:
    frame = aeic("encode", "-", "-", "-q", stdin=photo.read_bytes())
    assert frame.returncode == 0 and frame.stderr == b"" and frame.stdout[:1] == b"\xae"
    picture = aeic("decode", "-", "-", "--format", "webp", "--json", stdin=frame.stdout)
    assert picture.returncode == 0
    assert json.loads(picture.stderr)["bytes"] == len(frame.stdout)
    with Image.open(io.BytesIO(picture.stdout)) as opened:
        assert (opened.size, opened.format) == ((100, 70), "WEBP")


def test_folders_and_a_bad_file_among_good_ones(aeic: Aeic, photo: Path, tmp_path: Path) -> None:
    source, frames, back = tmp_path / "in", tmp_path / "frames", tmp_path / "back"
    source.mkdir()
    (source / "a.jpg").write_bytes(photo.read_bytes())
    (source / "b.png").write_bytes(b"no picture at all")
    (source / "c.jpg").write_bytes(photo.read_bytes())
    done = aeic("encode", source, frames, "--json")
    assert done.returncode == 3 and b"b.png" in done.stderr
    assert [json.loads(line)["output"][-6:] for line in done.stdout.splitlines()] == ["a.aeic", "c.aeic"]
    done = aeic("decode", frames, back, "--format", "jpeg", "-j", "1")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in back.iterdir()) == ["a.jpeg", "c.jpeg"]


def test_a_photograph_of_twelve_megapixels_fits_into_a_thousand_bytes(tmp_path: Path) -> None:
    """With the model that ships, and back to a picture that shows what the original shows."""
    with Image.open(ROOT / "examples" / "owl.jpg") as small:
        small.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC).save(tmp_path / "IMG_12MP.jpg")
        reference = small.convert("L").resize((96, 72))
    environment = {name: value for name, value in os.environ.items() if name != "AEIC_BUNDLE"}
    for flags in (("--max-bytes", "1000"), ("--preset", "300B")):
        frame, back = tmp_path / "x.aeic", tmp_path / "x.png"
        for command in (("encode", tmp_path / "IMG_12MP.jpg", frame, "-f", "--json", *flags), ("decode", frame, back)):
            arguments = [sys.executable, "-m", "aeic_tools.cli", *map(str, command)]
            done = subprocess.run(arguments, cwd=ROOT, capture_output=True, env=environment)
            assert done.returncode == 0, done.stderr
            if command[0] == "encode":
                facts = json.loads(done.stdout)
        assert frame.stat().st_size == facts["bytes"] <= (1000 if "1000" in flags else 300)
        assert (facts["original_width"], facts["original_height"]) == (4000, 3000)
        with Image.open(back) as decoded:
            shown = np.asarray(decoded.convert("L").resize((96, 72)), float)
        assert np.corrcoef(shown.ravel(), np.asarray(reference, float).ravel())[0, 1] > 0.9
        back.unlink()


def test_a_folder_is_resumed_with_its_folders_and_skips_what_is_there(aeic: Aeic, photo: Path, tmp_path: Path) -> None:
    source, frames = tmp_path / "DCIM", tmp_path / "frames"
    for name in ("100/IMG_1.jpg", "100/IMG_1.png", "101/IMG_1.JPG", "101/broken.jpg"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"broken" if "broken" in name else photo.read_bytes())
    done = aeic("encode", source, frames, "-R", "--skip-existing")
    assert done.returncode == 3 and b"broken.jpg" in done.stderr
    found = {str(path.relative_to(frames)) for path in frames.rglob("*.aeic")}
    assert found == {"100/IMG_1.jpg.aeic", "100/IMG_1.png.aeic", "101/IMG_1.aeic"}
    (frames / "101/IMG_1.aeic").unlink()
    (frames / "100/IMG_1.png.aeic").write_bytes(b"mine")
    (source / "101/broken.jpg").unlink()
    done = aeic("encode", source, frames, "-R", "--skip-existing")
    assert done.returncode == 0 and b"2 frames exist already" in done.stderr
    assert done.stderr.count(b" -> ") == 1 and (frames / "100/IMG_1.png.aeic").read_bytes() == b"mine"
    assert aeic("encode", source, frames, "-R", "--skip-existing", "-q").stderr == b""


def test_a_terminal_sees_a_progress_bar(tiny_bundle: Path, photo: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.jpg").write_bytes(b"broken" if number == 1 else photo.read_bytes())
    reading, terminal = os.openpty()
    command = [sys.executable, "-m", "aeic_tools.cli", "encode", str(source), str(tmp_path / "out")]
    environment = {**os.environ, "AEIC_BUNDLE": str(tiny_bundle)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(reading, 65536):
            said += part
    os.close(reading)
    assert done.returncode == 3 and b"3/3" in said and b"1.jpg" in said and b" -> " not in said
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_rates(aeic: Aeic, photo: Path, tmp_path: Path) -> None:
    for rate, number in (("r2", 1), ("0", 0)):
        done = aeic("encode", photo, tmp_path / f"{rate}.aeic", "--rate", rate, "--json")
        assert json.loads(done.stdout)["rate"] == number
    done = aeic("encode", photo, tmp_path / "x.aeic", "--rate", "r9")
    assert done.returncode == 2 and b"r1" in done.stderr
    assert not (tmp_path / "x.aeic").exists()


def test_nothing_is_overwritten(aeic: Aeic, photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "there.aeic"
    target.write_bytes(b"mine")
    done = aeic("encode", photo, target)
    assert done.returncode == 2 and b"-f" in done.stderr and target.read_bytes() == b"mine"
    assert aeic("encode", photo, target, "-f").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (["encode"], b"", 2, b"Missing argument"),
        (["encode", "nowhere.jpg", "-"], b"", 3, b"nowhere.jpg"),
        (["encode", "-", "-"], b"", 3, b"aeic: -: "),
        (["encode", "-", "-"], b"just text", 3, b"aeic: -: "),
        (["decode", "-", "-"], b"", 4, b"aeic: -: "),
        (["decode", "-", "-"], b"just text", 4, b"0x6a"),
        (["info", "-"], b"\xae\x20", 4, b"too few"),
        (["decode", "-", "picture.tiff"], b"", 2, b"--format"),
        (["decode", "-", "-", "--format", "gif"], b"", 2, b"--format gif: choose png"),
        (["decode", "-", "-", "--device", "toaster"], b"", 2, b"unknown device 'toaster'"),
        (["decode", "-", "-", "--device", "cuda:99"], b"", 2, b"--device cuda:99"),
        (["encode", "nowhere.jpg", "frame.jpg"], b"", 2, b"name the frame .aeic"),
        (["encode", "", "-"], b"", 2, b"a name is empty"),
        (["encode", "-", "-", "--preset", "1MB"], b"", 2, b"choose one of 300B, 1kB, 2kB"),
        (["info", "nowhere.aeic"], b"", 3, b"aeic: nowhere.aeic: "),
        (["latents", "nowhere.aeic", "-"], b"", 3, b"aeic: nowhere.aeic: "),
        (["store", "requeue", "garbage"], b"", 2, b"not the URL of a database"),
        (["store", "requeue", "sqlite:////nowhere/x.db"], b"", 2, b"no such file"),
        (["store", "upgrade", "garbage"], b"", 2, b"not the URL of a database"),
        (["store", "upgrade", "sqlite:////nowhere/x.db"], b"", 2, b"cannot be reached"),
        (["latents", "-", "-"], FOREIGN, 5, b"bundle that made it"),
        (["encode", "-", "-", "-m", "no/such/bundle"], b"", 5, b"no bundle at"),
    ],
)
def test_exit_codes(aeic: Aeic, arguments: list[str], stdin: bytes, code: int, says: bytes) -> None:
    done = aeic(*arguments, stdin=stdin)
    assert done.returncode == code, done.stderr
    assert says in done.stderr and b"Traceback" not in done.stderr and done.stdout == b""


def test_a_flipped_bit_is_exit_code_4(aeic: Aeic, photo: Path) -> None:
    frame = bytearray(aeic("encode", photo, "-", "-q").stdout)
    frame[12] ^= 16
    done = aeic("decode", "-", "-", stdin=bytes(frame))
    assert done.returncode == 4 and done.stdout == b"" and b"Traceback" not in done.stderr


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from aeic_tools.cli import main; sys.argv = ['aeic', 'encode', 'a', 'b']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == 2 and b'pip install ".[edge-cpu]"' in done.stderr, done.stderr


def test_a_command_of_the_training_extra_says_nothing_of_its_libraries(aeic: Aeic) -> None:
    done = aeic("export", "--help")
    assert done.returncode == 0 and done.stderr == b"", done.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from aeic_tools.cli import main; sys.argv = ['aeic', '--version']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([n for n in ('numpy', 'onnxruntime', 'PIL', 'torch') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]" and done.stdout.startswith("aeic "), done


@pytest.mark.parametrize("module", sorted(m for m, _, _ in MEASUREMENTS.values() if m.startswith("benchmarks.")))
def test_every_measurement_of_the_checkout_loads(module: str) -> None:
    assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize(
    "command",
    [
        ["spool", "check", "{folder}"],
        ["store", "check", "sqlite:///{folder}/store.db"],
        ["store", "restore", "sqlite:///{folder}/store.db", "backup.db"],
    ],
)
def test_files_of_a_service_that_the_user_may_not_read(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line with its remedy, and not as a file that does not exist."""
    real = os.stat

    def stat(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(str(tmp_path / "service")):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(SystemExit) as ended:
        main(lambda: app([part.format(folder=tmp_path / "service") for part in command], standalone_mode=False))
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1
    assert said.startswith(f"aeic: {tmp_path}/service") and "permission denied" in said and "sudo" in said
