"""A real PostgreSQL for the tests: Debian's package, in a temporary folder, run by an unprivileged user.

``python -m tests.support.cloud.postgres`` starts one and prints its address until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WHY_NOT = "PostgreSQL's server is not installed (Debian: postgresql; make test-fleet installs it)"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "restart_after_crash": "on",
}


def binaries() -> Path | None:
    """The folder of ``initdb`` and ``postgres``, the newest where there are several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    in_path = shutil.which("initdb")
    return Path(in_path).resolve().parent if in_path else None


def missing() -> str | None:
    """Why there can be none here."""
    if binaries() is None:
        return WHY_NOT
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (extra fleet)"
    return None


class Postgres:
    """A server of its own. ``durable`` False leaves out fsync: for tests that do not pull plugs."""

    def __init__(self, durable: bool = False) -> None:
        folder = binaries()
        assert folder is not None, WHY_NOT
        self._bin = folder
        self.folder = Path(tempfile.mkdtemp(prefix="aeic-postgres-"))
        self._as: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            # Not Popen's own user=: that forks, which a process full of gRPC's threads may not survive.
            self._as = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--"]
        self.port = free_port()
        self.url = f"postgresql+psycopg://aeic@127.0.0.1:{self.port}/postgres"
        self._settings = SETTINGS | {"port": str(self.port)} | ({} if durable else {"fsync": "off"})
        self._process: subprocess.Popen[bytes] | None = None
        options = ["-D", str(self.folder / "data"), "-U", "aeic", "-A", "trust", "-E", "UTF8", "--no-sync"]
        initdb = [*self._as, str(folder / "initdb"), *options]
        done = subprocess.run(initdb, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def start(self) -> Postgres:
        """Up and taking connections."""
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        command = [*self._as, str(self._bin / "postgres"), "-D", str(self.folder / "data"), *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        self.wait()
        return self

    def wait(self, seconds: float = 60.0) -> None:
        """Until it answers; after a kill it repairs itself first."""
        import psycopg

        end = time.monotonic() + seconds
        while True:
            try:
                psycopg.connect(f"host=127.0.0.1 port={self.port} user=aeic dbname=postgres", connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < end, (self.folder / "log").read_text()[-3000:]
                time.sleep(0.05)

    def kill(self) -> None:
        """Kill every process of it at once, as a power cut would: nothing is flushed."""
        if self._process is not None:
            for pid in [*_children(self._process.pid), self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def restart(self) -> None:
        """As an administrator would: connections are cut, nothing is lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
        self.start()

    def cpu_seconds(self) -> float:
        """What the server and its living processes have used; those that ended count in their parent's."""
        import psutil

        assert self._process is not None
        server = psutil.Process(self._process.pid)
        own = server.cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for child in server.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system
        return float(total)

    def fresh(self) -> str:
        """The address of an empty database."""
        import psycopg

        name = f"t{time.monotonic_ns()}"
        conninfo = f"host=127.0.0.1 port={self.port} user=aeic dbname=postgres"
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url.rpartition("/")[0] + "/" + name

    def stop(self) -> None:
        """Gone, with its folder."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    """A free TCP port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def main() -> int:
    """Run one until Ctrl-C."""
    server = Postgres(durable=True).start()
    print(server.url, flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
