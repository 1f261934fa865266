"""The services' HTTP API, as far as the demo and the tests use it. Standard library only."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from aeic_tools.demo.local_services import Pair

POLL_SECONDS = 0.02


class RequestFailed(Exception):
    """An error response, with ``status`` and the problem's ``detail``."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}")
        self.status, self.detail = status, detail


DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks services of this machine, never through the proxy of the environment."""


def request(url: str, body: bytes | None = None, seconds: float = 60, **headers: str) -> bytes:
    """GET, or POST if there is a body. Returns the response's body; ``RequestFailed`` for any status but 2xx."""
    return exchange(url, body, seconds, **headers)[1]


def exchange(url: str, body: bytes | None = None, seconds: float = 60, **headers: str) -> tuple[int, bytes]:
    """The same, with the status before the answer."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with DIRECT.open(urllib.request.Request(url, body, names), timeout=seconds) as answer:
            return answer.status, bytes(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = json.loads(text)["detail"]
        raise RequestFailed(error.code, text) from None


@dataclass(frozen=True)
class Journey:
    """One picture's way from the edge to the cloud and back to us. Times in milliseconds."""

    accepted: dict[str, Any]  # the edge's answer: id, width, height, bytes, bpp, rate, encode_ms
    frame: dict[str, Any]  # what the cloud knows of the frame
    image: bytes  # PNG
    end_to_end_ms: float

    @property
    def decode_ms(self) -> float:
        """Entropy decoding, synthesis and the making of the picture, without the time in a queue."""
        timings = self.frame.get("timings") or {}
        return 1e3 * sum(float(timings.get(stage, 0)) for stage in ("entropy", "synthesis", "image"))


def travel(pair: Pair, picture: bytes, rate: str | None = None, seconds: float = 60) -> Journey:
    """Post a picture to the edge, wait for its reconstruction at the cloud. ``RequestFailed`` or ``TimeoutError``."""
    query = "?" + urllib.parse.urlencode({"rate": rate}) if rate else ""
    start = time.perf_counter()
    accepted = json.loads(request(f"{pair.edge.http}/v1/frames{query}", picture, seconds, X_Source_Id="demo"))
    where = f"{pair.cloud.http}/v1/frames/{accepted['id']}"
    while True:
        try:
            status, image = exchange(f"{where}/image?format=png&wait=30", None, seconds)
            if status == 200:  # 202: it is there, and still being decoded
                break
        except RequestFailed as error:
            if error.status != 404:  # 404: the uplink has not brought it yet
                raise
        if time.perf_counter() - start > seconds:
            state = json.loads(request(f"{pair.edge.http}/v1/frames/{accepted['id']}"))
            raise TimeoutError(f"frame {accepted['id']} did not arrive; the edge says: {state}")
        time.sleep(POLL_SECONDS)
    elapsed = 1e3 * (time.perf_counter() - start)
    return Journey(accepted, json.loads(request(where)), image, elapsed)
