"""The process that reads picture files: `python -m edge_encoder.encoding.picture_process LINE`.

LINE is an inherited socket; picture_reader.py is the other side. It imports the picture readers and no ONNX Runtime.
Each request is one line of JSON with the descriptor of an anonymous file that holds the picture file. The answer is in
the same file:

    {"do": "size"}      -> {"size": [width, height]}
    {"do": "exif"}      -> {"bytes": number}, the EXIF
    {"do": "pixels"}    -> {"size": [width, height]}, then {"shape": [height, width, 3]}, the pixels

A request also has the limits "max_pixels" of the picture and "most_bytes" of memory, and "stretch" of load_picture.
A picture that is refused is answered with the class of the error in "failed" and its text in "what"; "memory" is the
class where the limit on memory was reached, and "machine" where the system refused something. A request that takes too
long ends the process, so that nothing is left behind by a service that has been killed. The process ends with its
socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aeic.errors import InputError
from aeic.pixels import exif_block, load_picture, picture_size
from aeic.runtime.processor import usable_cores
from aeic_service import malloc

try:
    import resource
except ImportError:  # a system without limits
    resource = None  # type: ignore[assignment]  # mypy takes the name for the module

Request = dict[str, Any]
Answer = dict[str, Any]

HEAD_SECONDS = 10.0
"""To read the head of a file."""
BASE_SECONDS, MEGAPIXEL_SECONDS = 10.0, 2.0
"""To read a whole file. Ordinary files take less than a tenth of this on the slowest boxes."""
GRACE_SECONDS = 5.0
"""After which the process ends itself, if the service has not done it."""
BASE_BYTES, FILE_COPIES, PIXEL_BYTES = 96 << 20, 6, 24
"""The most memory that reading a file may take: so much, so many times its own bytes, and so much for each pixel. A
WebP takes 19 bytes a pixel with transparency, all others take less."""
REQUEST_BYTES = 4096
MOST_THREADS = 4
"""That decode one AVIF, as with HEIF. Pillow would take one for each core, and their stacks count as memory."""


def read_seconds(pixels: int) -> float:
    """The time in which a picture of so many pixels must be read."""
    return BASE_SECONDS + MEGAPIXEL_SECONDS * pixels / 1e6


def read_bytes(size: int, pixels: int) -> int:
    """The memory that reading a file of `size` bytes with so many pixels may take."""
    return BASE_BYTES + FILE_COPIES * size + PIXEL_BYTES * pixels


class PictureProcess:
    """Answers requests over `line`."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._own_bytes = _private_bytes()

    def serve(self) -> None:
        """Until the service is gone."""
        self._send({"ready": True})
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._line, REQUEST_BYTES, 1)
            if not message:
                return
            with os.fdopen(descriptors[0], "r+b", buffering=0) as file:
                answer = self._answer(json.loads(message), file.fileno())
            signal.alarm(0)
            self._send(answer)

    def _answer(self, request: Request, file: int) -> Answer:
        steps: dict[str, Callable[[Request, bytes, int], Answer]] = {
            "size": self._size, "exif": self._exif, "pixels": self._pixels
        }  # fmt: skip
        try:
            size = os.fstat(file).st_size
            # A WebP takes memory for all of its pixels as soon as it is opened.
            self._limit(HEAD_SECONDS, min(request["most_bytes"], read_bytes(size, request["max_pixels"])))
            return steps[request["do"]](request, os.pread(file, size, 0), file)
        except InputError as error:
            if _is_memory(error):
                return {"failed": "memory", "what": ""}
            return {"failed": type(error).__name__, "what": str(error)}
        except MemoryError:
            return {"failed": "memory", "what": ""}
        except OSError as error:  # of the file in memory, since the readers' own are InputError by now
            return {"failed": "machine", "what": str(error)}

    def _size(self, request: Request, data: bytes, file: int) -> Answer:
        return {"size": picture_size(data, max_pixels=request["max_pixels"])}

    def _exif(self, request: Request, data: bytes, file: int) -> Answer:
        block = exif_block(data)
        _replace(file, memoryview(block))
        return {"bytes": len(block)}

    def _pixels(self, request: Request, data: bytes, file: int) -> Answer:
        max_pixels = request["max_pixels"]
        width, height = picture_size(data, max_pixels=max_pixels)
        self._send({"size": [width, height]})
        most_bytes = min(request["most_bytes"], read_bytes(len(data), width * height))
        self._limit(read_seconds(width * height), most_bytes)
        rgb = load_picture(data, max_pixels=max_pixels, stretch=request["stretch"])
        _replace(file, rgb.data.cast("B"))
        return {"shape": rgb.shape}

    def _limit(self, seconds: float, most_bytes: int) -> None:
        """Bounds the time and the memory that are taken from now on. An alarm ends also what never returns."""
        signal.alarm(int(seconds + GRACE_SECONDS))
        if resource is not None:
            # Unlike the address space, this leaves out shared memory and what threads only reserve.
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            most = min(self._own_bytes + most_bytes, sys.maxsize)
            if hard != resource.RLIM_INFINITY:
                most = min(most, hard)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_DATA, (most, hard))

    def _send(self, message: Answer) -> None:
        self._line.sendall(json.dumps(message).encode() + b"\n")


def _replace(file: int, data: memoryview) -> None:
    """Makes `data` the content of the file. What was in it is freed first."""
    os.ftruncate(file, 0)
    while data:
        data = data[os.pwrite(file, data, os.fstat(file).st_size) :]


def _is_memory(error: BaseException | None) -> bool:
    """Whether it was raised because of a MemoryError."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


def _private_bytes() -> int:
    """What counts against the limit on memory now."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 256 << 20


def _stand_back() -> None:
    """If the machine runs out of memory, the system ends this process before the service. A crash leaves no file."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound_threads() -> None:
    with contextlib.suppress(ImportError):  # older Pillow reads no AVIF
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = min(usable_cores(), MOST_THREADS)


def main(arguments: list[str]) -> int:
    """Answers requests until the service is gone."""
    malloc.give_large_blocks_back()
    _bound_threads()
    _stand_back()
    with socket.socket(fileno=int(arguments[0])) as line, contextlib.suppress(ConnectionError, KeyboardInterrupt):
        PictureProcess(line).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
