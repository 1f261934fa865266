"""Sends pictures that are dropped on the page to an edge, which encodes them. The cloud itself only decodes.

The browser talks to the cloud only, so the page's content policy stays closed and the edge needs no CORS. The edge's
answers are untrusted: limited in size, parsed, and passed on field by field.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aeic_service.errors import Overloaded, ServiceError
from cloud_decoder.errors import NoEdge
from cloud_decoder.threads import run_on

AT_ONCE = 4
"""Pictures in progress at once; each is held in memory."""
_ANSWER_BYTES = 65536
_NO_EDGE = "the server at AEIC_CLOUD_EDGE_URL is not an edge: correct the address"
_FRAME_FIELDS = {"id": str, "width": int, "height": int, "bytes": int, "bpp": float, "rate": int, "encode_ms": float}


class EdgeUnreachable(ServiceError):
    """The configured edge does not answer, or its answer is not that of an edge."""

    http_status = 503


class EdgeRefused(ServiceError):
    """The edge refused the picture; status and detail are the edge's."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.http_status = status


class EdgeProxy:
    """``url`` is the HTTP address of the edge, empty for none. Only pictures of ``tenant`` are sent to it."""

    def __init__(self, url: str, tenant: str, seconds: float = 30.0) -> None:
        if url and urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("AEIC_CLOUD_EDGE_URL must start with http:// or https://")
        self._url, self._tenant, self._seconds = url.rstrip("/"), tenant, seconds
        host = urllib.parse.urlsplit(url).hostname or ""
        # An edge on this machine is never asked through the proxy of the environment.
        proxies: dict[str, str] | None = {} if host in ("localhost", "::1") or host.startswith("127.") else None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
        self._threads = ThreadPoolExecutor(AT_ONCE, "edge-proxy")
        self._in_progress = 0

    def serves(self, tenant: str) -> bool:
        """Whether this tenant's pictures can be encoded. The frames of an edge belong to one tenant."""
        return bool(self._url) and tenant == self._tenant

    def why_not(self) -> str:
        """Why :meth:`serves` is false, as a sentence for the page."""
        if self._url:
            return "The edge beside this cloud belongs to another tenant."
        return "No edge is configured here: set AEIC_CLOUD_EDGE_URL to the HTTP address of one."

    @contextlib.contextmanager
    def place(self, tenant: str) -> Iterator[None]:
        """Reserve memory for one picture. Enter it before the request's body is read.

        ``NoEdge`` where no edge encodes for this tenant, ``Overloaded`` where too many pictures are in progress.
        """
        if not self.serves(tenant):
            raise NoEdge(self.why_not())
        if self._in_progress >= AT_ONCE:
            raise Overloaded(f"{AT_ONCE} pictures are being encoded already: try again in a moment", retry_after=1.0)
        self._in_progress += 1
        try:
            yield
        finally:
            self._in_progress -= 1

    async def encode(self, picture: bytes, rate: str | None) -> dict[str, Any]:
        """The frame that the edge made of a JPEG, PNG or WebP file: id, width, height, bytes, bpp, rate, encode_ms."""
        query = "?" + urllib.parse.urlencode({"rate": rate}) if rate else ""
        found = await self._ask(f"/v1/frames{query}", picture)
        try:
            return {name: kind(found[name]) for name, kind in _FRAME_FIELDS.items()}
        except (KeyError, TypeError, ValueError):
            raise EdgeUnreachable(_NO_EDGE) from None

    async def status(self) -> dict[str, Any]:
        """The edge's source, frames and bytes in its spool, age of the oldest in seconds, and state of its link."""
        found = await self._ask("/v1/status", None)
        try:
            spool, uplink = found["spool"], found["uplink"]
            return {
                "source": str(found["source_id"])[:128],
                "waiting": int(spool["frames"]),
                "waiting_bytes": int(spool["bytes"]),
                "oldest_seconds": float(spool["oldest_seconds"]),
                "link": str(uplink["state"])[:40],
            }
        except (KeyError, TypeError, ValueError):
            raise EdgeUnreachable(_NO_EDGE) from None

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        return await run_on(self._threads, self._exchange, path, body)

    def _exchange(self, path: str, body: bytes | None) -> dict[str, Any]:
        headers = {"X-Source-Id": "page", "X-Captured-At": str(int(time.time() * 1000))} if body is not None else {}
        request = urllib.request.Request(self._url + path, body, headers)
        try:
            with self._opener.open(request, timeout=self._seconds) as answer:
                found = json.loads(answer.read(_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except (OSError, ValueError) as error:
            raise EdgeUnreachable(
                f"the edge does not answer ({type(error).__name__}): start it, or correct AEIC_CLOUD_EDGE_URL",
                retry_after=5.0,
            ) from None
        if not isinstance(found, dict):
            raise EdgeUnreachable(_NO_EDGE)
        return found


def _refusal(error: urllib.error.HTTPError) -> ServiceError:
    try:
        detail = str(json.loads(error.read(_ANSWER_BYTES))["detail"])[:500]
    except (OSError, ValueError, KeyError, TypeError):
        return EdgeUnreachable(f"the edge answered {error.code} without a reason", retry_after=5.0)
    if error.code >= 500:
        return EdgeUnreachable(f"the edge cannot take it now: {detail}", retry_after=5.0)
    return EdgeRefused(error.code, detail)
