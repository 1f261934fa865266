"""Log lines: JSON or text, what libraries in C write included, and no message that can forge a line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading

import pytest

from aeic_service import logs

INJECTED = "box\n2026-01-01 INFO forged\r\x1b[2J\x9b31m\u2028\u202etxt"


def run(form: str, code: str) -> list[str]:
    """The lines on stderr of a process that logs in that form."""
    program = f"import logging, os, sys, time\nfrom aeic_service import logs\nlogs.set_up('info', {form!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr.split("\n")[:-1]


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_message_cannot_forge_a_line(form: str) -> None:
    (line,) = run(form, f"logging.getLogger('x').warning('from %s', {INJECTED!r})")
    assert "forged" in line and not any(c in line for c in "\r\x1b\x9b\u2028\u202e")
    if form == "json":
        assert json.loads(line)["event"] == f"from {INJECTED}"


def test_an_exception_cannot_forge_a_line() -> None:
    code = f"try:\n    raise ValueError({INJECTED!r})\nexcept ValueError:\n    logging.exception('it failed')"
    (line,) = run("json", code)
    assert json.loads(line)["error"].startswith("Traceback")
    first, *others = run("text", code)
    assert first.endswith("it failed") and others and all(one.startswith("    ") for one in others)


def test_lines_of_libraries_in_c_are_in_the_json_log() -> None:
    absl = "E0000 00:00:1764363600.123456    1234 ssl_transport_security.cc:1884] Handshake failed"
    code = f"os.write(2, {absl!r}.encode() + b'\\nanother\\n'); time.sleep(0.5); logging.info('end')"
    grpc, other, end = [json.loads(line) for line in run("json", code)]
    assert (grpc["logger"], grpc["level"]) == ("grpc", "error") and grpc["event"].endswith("Handshake failed")
    assert (other["logger"], other["level"], other["event"]) == ("stderr", "warning", "another")
    assert end["event"] == "end"


def test_lines_of_a_child_keep_their_logger_and_level() -> None:
    child = (
        "import logging\nfrom aeic_service import logs\nlogs.set_up(**{chosen}, child=True)\n"
        "logging.getLogger('x').info({said!r})\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    logging.getLogger('y').exception('it failed')"
    ).replace("{said!r}", repr(INJECTED))
    code = (
        f"import subprocess\nprogram = {child!r}.replace('{{chosen}}', repr(logs.chosen()))\n"
        "subprocess.run([sys.executable, '-c', program], check=True)\n"
        """os.write(2, b'{"time": "not one of a child"}\\n')\ntime.sleep(0.5)"""
    )
    said, failed, other = [json.loads(line) for line in run("json", code)]
    assert (said["logger"], said["level"], said["event"]) == ("x", "info", INJECTED)
    assert (failed["logger"], failed["level"]) == ("y", "error") and "ZeroDivisionError" in failed["event"]
    assert (other["logger"], other["level"]) == ("stderr", "warning")


def test_a_library_that_holds_the_interpreter_is_never_blocked() -> None:
    """The reader of the pipe cannot run while PyDLL calls: a pipe that blocks would hang here."""
    code = "import ctypes\nlogging.info('%d', ctypes.PyDLL(None).write(2, b'x' * (4 << 20), 4 << 20))"
    written = [json.loads(line)["event"] for line in run("json", code)]
    assert any(one.isdigit() and 0 < int(one) < 4 << 20 for one in written)


def test_uvicorns_lines_are_in_the_json_log() -> None:
    (line,) = run("json", "logging.getLogger('uvicorn.error').warning('Invalid HTTP request received.')")
    assert json.loads(line)["logger"] == "uvicorn.error"


def test_what_a_stranger_can_repeat_is_logged_once_a_minute() -> None:
    sparse = logs.Sparse(("out of system resource",), 60.0)
    seen = [
        sparse.filter(logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), None))
        for text in ("socket.accept() out of system resource", "other", "socket.accept() out of system resource")
    ]
    assert seen == [True, True, False]


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_reader_who_stalls_does_not_hold_up_the_service(form: str) -> None:
    program = f"""
import logging
from aeic_service import logs
logs.set_up("info", {form!r})
for number in range(50_000):
    logging.info("line %s %s", number, "x" * 100)
print("served", flush=True)
input()
logging.getLogger().handlers[0].flush()
logging.info("the end")
"""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", program], text=True, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdout and process.stdin and process.stderr
    timer = threading.Timer(60, process.kill)
    timer.start()
    lines: list[str] = []
    try:
        assert process.stdout.readline() == "served\n"  # although nobody has read a line of the log
        for line in process.stderr:
            lines.append(line)
            if "line 0 " in line:
                process.stdin.write("\n")
                process.stdin.flush()
        assert process.wait(30) == 0
    finally:
        timer.cancel()
        process.kill()
    assert "line 0 " in lines[0] and len(lines) < 50_000
    assert any("lines of the log were lost" in line for line in lines)
    assert "the end" in lines[-1]
