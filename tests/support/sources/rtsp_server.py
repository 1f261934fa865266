"""A camera on RTSP: GStreamer's RTSP server, which Debian has.

Run as a program, it is the server; it then needs Debian's Python, which has GStreamer's bindings, and imports nothing
of this repository.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_DEBIANS_PYTHON = "/usr/bin/python3"
_PACKAGES = "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good python3-gi"
_VIDEO = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=160,height=120,framerate=10/1"
    " ! jpegenc ! rtpjpegpay name=pay0 pt=26 )"
)
_CHECK = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer;"
    " Gst.init(None); assert all(map(Gst.ElementFactory.find, ('rtpjpegpay', 'jpegenc', 'videotestsrc')))"
)


def missing() -> str:
    """Why there is no server here; empty where there is one."""
    if not Path(_DEBIANS_PYTHON).exists():
        return f"no {_DEBIANS_PYTHON}"
    found = subprocess.run([_DEBIANS_PYTHON, "-c", _CHECK], capture_output=True)
    return f"no RTSP server (Debian: {_PACKAGES})" if found.returncode else ""


@dataclass
class RtspServer:
    """`start()` and `stop()` it as often as you like; the port stays."""

    password: str
    port: int = 0
    _process: subprocess.Popen[str] | None = None

    def url(self, password: str) -> str:
        """Of its stream."""
        return f"rtsp://user:{password}@127.0.0.1:{self.port}/stream"

    def start(self) -> None:
        """Returns when it listens."""
        command = [_DEBIANS_PYTHON, __file__, str(self.port), self.password]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def stop(self) -> None:
        """At once, as a camera that loses its power."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=30)
            self._process = None


@contextlib.contextmanager
def rtsp_server(password: str) -> Iterator[RtspServer]:
    """A running server, for the user `user`."""
    server = RtspServer(password)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def main() -> None:
    """Serves until it is killed."""
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=sys.argv[1])
    factory = GstRtspServer.RTSPMediaFactory(launch=_VIDEO, shared=True)
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic("user", sys.argv[2]), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("user", "media.factory.access", True)
    permissions.add_permission_for_role("user", "media.factory.construct", True)
    factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/stream", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
