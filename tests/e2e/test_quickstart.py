"""The quickstart pages, followed by deploy/try_quickstart.py: their commands really run from the second step on.

`make test-quickstart` runs everything, in a fresh Debian.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import load
from tests.support.roots import DEPLOY, DOCS, ROOT

NAMES = ("x86", "raspberry-pi", "jetson")
QUICKSTART: Any = load("try_quickstart", DEPLOY / "try_quickstart.py")
PAGE: list[tuple[str, str]] = QUICKSTART.steps("x86")
PNG = "\\211PNG" + "-" * 20_000
DELIVERED = '{"id":"7","state":"delivered","bytes":900}'


def test_no_shell_block_of_a_page_is_overlooked() -> None:
    for name in NAMES:
        text = (DOCS / "how-to" / f"quickstart-{name}.md").read_text()
        assert text.count("```") == 2 * text.count("```sh\n") == 2 * len(QUICKSTART.blocks(name))
        assert "".join(QUICKSTART.blocks(name)) == "".join(re.split(r"```(?:sh\n)?", text)[1::2])


def test_every_port_of_the_pages_can_be_replaced() -> None:
    ports = set(re.findall(r"(?:port |127\.0\.0\.1:)(\d+)", "".join(block for _, block in PAGE)))
    assert ports == set(QUICKSTART.PORTS) and len(set(QUICKSTART.free_ports(ports).values())) == len(ports)


def test_the_pages_differ_in_their_first_step_only() -> None:
    first, *others = (QUICKSTART.blocks(name)[1:] for name in NAMES)
    assert all(one == first for one in others) and len(first) == 5


def test_every_page_installs_what_the_unit_starts() -> None:
    unit = (ROOT / "deploy" / "aeic-edge.service").read_text()
    assert "ExecStart=/opt/aeic/bin/python" in unit and "EnvironmentFile=/etc/aeic/edge.env" in unit
    for name in NAMES:
        text = "".join(QUICKSTART.blocks(name))
        assert "-m venv /opt/aeic\n" in text and "/etc/aeic/edge.env" in text and "User=aeic" in unit


def machine(folder: Path, environment: dict[str, str], words: dict[str, str]) -> Any:
    """A shell in a folder, with free ports."""
    ports = QUICKSTART.free_ports(QUICKSTART.PORTS)
    moved = {f"/tmp/aeic-{side}": shlex.quote(str(folder / side)) for side in ("cloud", "edge")}
    inside = ["env", f"--chdir={folder}", "bash", "-ec"]
    return QUICKSTART.Machine(inside, environment, folder, {**moved, **words, **ports})


@pytest.mark.skipif(shutil.which("curl") is None, reason="the pages use curl")
def test_from_the_cloud_to_the_first_picture(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AEIC_")}
    program = f"{shlex.quote(sys.executable)} -m aeic_tools.cli"
    words = {"/opt/aeic/bin/aeic": program, "/opt/aeic/src": shlex.quote(str(ROOT))}
    installed = [(name, re.sub(r"^sudo .*pip install.*\n", "", block, flags=re.M)) for name, block in PAGE[1:-1]]
    here = machine(tmp_path, {**clean, "PYTHONPATH": str(ROOT)}, words)
    seen = QUICKSTART.follow(installed, here, {})
    assert seen["blocks"] == 4 and seen["frame_bytes"] <= 1000


STAND_IN = """#!/bin/sh
name=$(basename "$0")
echo "$name $*" >> "$LOG"
case "$name $*" in
  curl*" -o "*) printf "$PICTURE" > owl.png;;
  curl*) echo "$ANSWER";;
  aeic*)
    while [ "$1" != --port ]; do shift; done
    mkdir -p ready && touch ready/readyz
    exec "$PYTHON" -m http.server --bind 127.0.0.1 --directory ready "$2" 2>/dev/null;;
esac
"""


@pytest.fixture
def stand_ins(tmp_path: Path) -> Any:
    """A machine on which the programs of the page only note that they were called, and its services are ready."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sudo", "curl", "systemctl", "aeic"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "LOG": str(tmp_path / "log"), "PYTHON": sys.executable}
    environment |= {"PICTURE": PNG, "ANSWER": DELIVERED}
    return machine(tmp_path, environment, {"/opt/aeic": str(tmp_path)})


def test_every_command_of_the_page_is_run_in_order(stand_ins: Any, tmp_path: Path) -> None:
    seconds: dict[str, float] = {}
    assert QUICKSTART.follow(PAGE, stand_ins, seconds)["blocks"] == len(PAGE)
    expected = []
    for line in "".join(block for _, block in PAGE).replace("ID/image", "7/image").splitlines():
        words = shlex.split(stand_ins.command(line.rpartition("| ")[2]))
        while re.match(r"\w+=", words[0]):
            words = words[1:]
        if words[0] != "export":
            expected.append(" ".join([Path(words[0]).name, *words[1:]]))
    assert (tmp_path / "log").read_text().splitlines() == expected
    assert list(seconds) == [name for name, _ in dict(PAGE).items()]


def test_ctrl_c_reaches_the_services_of_a_run_in_the_background(stand_ins: Any) -> None:
    """A shell without job control has the jobs in its background ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert QUICKSTART.follow(PAGE, stand_ins, {})["blocks"] == len(PAGE)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", range(len(PAGE)))
@pytest.mark.parametrize("last", [False, True])
def test_a_fault_in_any_block_is_a_failure(stand_ins: Any, number: int, last: bool) -> None:
    (name, block), service = PAGE[number], QUICKSTART.SERVICE.search(PAGE[number][1])
    lines = block.splitlines(keepends=True)
    lines.insert(len(lines) - bool(service) if last else 0, "false\n")
    page = [*PAGE[:number], (name, "".join(lines)), *PAGE[number + 1 :]]
    with pytest.raises(SystemExit, match="exit code 1"):
        QUICKSTART.follow(page, stand_ins, {})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"ANSWER": DELIVERED.replace("delivered", "queued")}, "no picture was delivered"),
        ({"ANSWER": DELIVERED.replace("900", "1001")}, "no picture was delivered"),
        ({"ANSWER": "nothing"}, "no picture was delivered"),
        ({"PICTURE": "\\211PNG"}, "fetched no picture"),
        ({"PICTURE": "JFIF" * 5_000}, "fetched no picture"),
    ],
)
def test_without_a_first_picture_it_fails(stand_ins: Any, changed: dict[str, str], reason: str) -> None:
    stand_ins.environment.update(changed)
    with pytest.raises(SystemExit, match=reason):
        QUICKSTART.follow(PAGE, stand_ins, {})


def test_the_page_fetches_the_picture_itself(stand_ins: Any) -> None:
    with pytest.raises(SystemExit, match="fetched no picture"):
        QUICKSTART.follow([step for step in PAGE if " -o " not in step[1]], stand_ins, {})


@pytest.mark.parametrize("name", ["x86", "arm64"])
def test_without_root_it_is_not_run_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(QUICKSTART, "make_root", lambda name: pytest.fail("it must not make anything"))
    monkeypatch.setattr("sys.argv", ["try_quickstart.py", *(["--arm64"] if name == "arm64" else [])])
    assert QUICKSTART.main() == 0
    assert capsys.readouterr().out == QUICKSTART.NOT_RUN[name] + "it needs root\n"


@pytest.mark.parametrize(
    ("name", "script", "reason"),
    [
        ("arm64", "exit 0", None),
        ("x86", "exit 1", "this machine does not allow root to start processes in namespaces of their own"),
        ("x86", 'case "$*" in *tmpfs*) exit 1; esac', "this machine does not allow root to mount file systems"),
        ("x86", 'case "$*" in *binfmt*) exit 1; esac', None),
        ("arm64", 'case "$*" in *binfmt*) exit 1; esac', QUICKSTART.NO_BINFMT),
    ],
)
def test_it_is_seen_whether_a_debian_can_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, script: str, reason: str | None
) -> None:
    (tmp_path / "unshare").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert QUICKSTART.obstacle(name) == reason


def test_without_debootstrap_it_is_not_run_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(QUICKSTART, "obstacle", lambda name: None)
    monkeypatch.setattr(QUICKSTART, "make_root", lambda name: pytest.fail("it must not make anything"))
    monkeypatch.setattr("sys.argv", ["try_quickstart.py"])
    assert QUICKSTART.main() == 0
    assert capsys.readouterr().out == QUICKSTART.NOT_RUN["x86"] + "debootstrap is missing\n"
