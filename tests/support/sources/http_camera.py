"""A camera on HTTP: snapshots, and Motion JPEG as various cameras send it."""

from __future__ import annotations

import contextlib
import http.server
import io
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image


def jpeg(number: int) -> bytes:
    """A picture of 160 x 120 whose bright square is elsewhere for each number."""
    rgb = np.full((120, 160, 3), 90, np.uint8)
    left = 10 * number % 120
    rgb[20:60, left : left + 40] = 250
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=80)
    return out.getvalue()


@dataclass
class HttpCamera:
    """`hits` counts the requests by path: /snap.jpg, /stream, /missing-first, /damaged, /ends (after five pictures)."""

    url: str
    hits: Counter[str] = field(default_factory=Counter)


@contextlib.contextmanager
def http_camera() -> Iterator[HttpCamera]:
    """The camera on a free port of loopback."""
    camera = HttpCamera("")
    ended = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.close_connection = True
            path = self.path.strip("/")
            camera.hits[path] += 1
            self.send_response(200)
            if path == "snap.jpg":
                body = jpeg(camera.hits[path])
                self.send_header("Content-Type", "image/jpeg")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):
                for number in range(5 if path == "ends" else 1000):
                    body = jpeg(number)
                    if path == "damaged" and number % 5 == 3:
                        body = body[: len(body) // 2]
                    head = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body)
                    boundary = b"" if path == "missing-first" and not number else b"--frame\r\n"
                    self.wfile.write(boundary + head + body + b"\r\n")
                    self.wfile.flush()
                    if ended.wait(0.04):
                        return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    camera.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield camera
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
