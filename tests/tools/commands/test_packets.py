"""`aeic split` and `aeic join`, and the example that uses packets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aeic.errors import Damaged, NotABitstream
from aeic_tools.commands.packets import join, split
from aeic_tools.files import UsageError
from tests.support.roots import ROOT

FRAME = b"\xae" + bytes(range(256)) * 3


def test_a_frame_becomes_packets_and_comes_back(tmp_path: Path) -> None:
    frame, packets, back = tmp_path / "photo.aeic", tmp_path / "packets", tmp_path / "back.aeic"
    frame.write_bytes(FRAME)
    assert split(str(frame), str(packets), 222, pad=True, force=False) == 0
    names = sorted(path.name for path in packets.iterdir())
    assert names == [f"photo-{number:03d}.pkt" for number in range(4)]
    assert {path.stat().st_size for path in packets.iterdir()} == {222}
    assert join([str(packets)], str(back), force=False) == 0
    assert back.read_bytes() == FRAME
    with pytest.raises(UsageError, match="-f"):
        join([str(packets)], str(back), force=False)
    (packets / "photo-001.pkt").unlink()
    (packets / "photo-003.pkt").write_bytes(b"\xad" + bytes(221))
    with pytest.raises(Damaged, match="211 to 421, 633 to 768"):
        join([str(packets)], str(back), force=True)
    assert back.read_bytes() == FRAME


def test_wrong_use(tmp_path: Path) -> None:
    frame, other = tmp_path / "a.aeic", tmp_path / "b.aeic"
    frame.write_bytes(FRAME)
    other.write_bytes(FRAME + b"x")
    with pytest.raises(UsageError, match="12 bytes or more"):
        split(str(frame), str(tmp_path / "out"), 5, pad=False, force=False)
    with pytest.raises(UsageError, match="not a folder"):
        split(str(frame), str(other), 222, pad=False, force=True)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(NotABitstream):
        split(str(tmp_path / "photo.jpg"), str(tmp_path / "out"), 222, pad=False, force=False)
    for source in (frame, other):
        split(str(source), str(tmp_path / "both"), 222, pad=False, force=False)
    with pytest.raises(UsageError, match="several frames"):
        join([str(tmp_path / "both")], str(tmp_path / "x.aeic"), force=False)
    with pytest.raises(Damaged, match="no whole packet"):
        join([str(frame)], str(tmp_path / "x.aeic"), force=False)


def test_lines_of_hexadecimal_go_through_pipes(tmp_path: Path) -> None:
    def aeic(*arguments: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "aeic_tools.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True)

    done = aeic("split", "-", "-", "--size", "340", stdin=FRAME)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert [len(line) for line in lines] == [680, 680, 2 * (769 - 2 * 329 + 11)]
    noisy = b"\n".join([b"+OK", *reversed(lines), b"zz"]) + b"\n"
    done = aeic("join", "-", "-", stdin=noisy)
    assert done.returncode == 0 and done.stdout == FRAME and b"2 damaged packets" in done.stderr
    assert aeic("join", "-", "-", stdin=lines[0]).returncode == 4


def test_the_example_brings_a_photograph_over_a_lossy_line() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "examples" / "lossy_serial.py")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "arrived bit for bit" in done.stdout and " 0 lost" not in done.stdout
