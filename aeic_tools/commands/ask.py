"""The command ask: a request to a camera by way of the cloud, and the picture or file that answers it."""

from __future__ import annotations

import mimetypes
import sys
from pathlib import Path
from uuid import UUID

import httpx

from aeic_client import Client, Problem
from aeic_tools import files
from aeic_tools.cloud_errors import words
from aeic_tools.files import PIPE, Unwritable, UsageError

_FORMATS = {"": "png", ".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg", ".avif": "avif"}
_SUFFIXES = {"image/jpeg": (".jpg", ".jpeg"), "image/png": (".png",), "image/webp": (".webp",)}
_WAIT_SECONDS = 30.0


def ask(
    frame: UUID,
    region: str | None,
    max_bytes: int,
    target: str | None,
    url: str,
    token: str | None,
    deadline: float,
    *,
    original: bool = False,
    now: bool = False,
    force: bool,
) -> int:
    """Asks, waits for the end of the request, and writes the picture. 0, or 1 where the request was refused."""
    part = None if region is None else _region(region)
    if now and (original or part is not None):
        raise UsageError("--now takes a new picture: give neither --original nor --region with it")
    kind = "now" if now else "original" if original else "better" if part is None else "region"
    if target == "":  # an unset shell variable
        raise UsageError("the name after -o is empty: give a file, or - for a pipe")
    name = target or f"{frame}-closer.{'jpg' if original else 'png'}"
    form = _FORMATS.get("" if name == PIPE else Path(name).suffix.lower())
    if form is None and not original:  # an original keeps its own format
        raise UsageError(f"{name}: give a file with the suffix .png, .webp, .jpg or .avif")
    files.refuse_overwrite(name, force)
    try:
        with Client(url, token) as cloud:
            request = cloud.ask(frame, kind, region=part, max_bytes=max_bytes, deadline=deadline)
            try:
                while request.state == "open":
                    request = cloud.request(request, wait=_WAIT_SECONDS)
                if request.answer is None:
                    print(f"aeic: refused ({request.reason}): {request.detail}", file=sys.stderr)
                    return 1
                answer = request.answer
                if original:
                    _check_suffix(name, cloud.frame(answer).media_type, answer)
                    found = cloud.file(answer)
                else:
                    found = cloud.image(answer, form or "png", wait=_WAIT_SECONDS)
                files.write(name, found, force)
            except (Problem, httpx.TransportError, Unwritable, KeyboardInterrupt):  # the box is paying all the same
                place = f"/v1/frames/{request.id}/{'file' if original else 'image'}"
                print(f"aeic: the answer is or will be at {place}: do not ask again", file=sys.stderr)
                raise
    except (Problem, httpx.TransportError) as error:
        print(words(error, url), file=sys.stderr)
        return 1
    print(f"{frame} -> {name}: {request.bytes} bytes, frame {request.answer}", file=sys.stderr)
    return 0


def _check_suffix(name: str, media_type: str | None, answer: UUID) -> None:
    """An original keeps its own format, which is known only now. A name for another one would lie about the file."""
    suffixes = _SUFFIXES.get(media_type or "", ())
    suffix = Path(name).suffix.lower()
    picture = suffix in _FORMATS or str(mimetypes.guess_type(name)[0]).startswith("image/")
    if name != PIPE and suffixes and picture and suffix and suffix not in suffixes:
        raise UsageError(
            f"{name}: the original is {media_type}: give a name with {suffixes[0]}, or fetch it from"
            f" /v1/frames/{answer}/file"
        )


def _region(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--region {text}: give X,Y,W,H in pixels, such as 334,214,382,356") from None
    return x, y, width, height
