"""Pictures dropped on the page, on their way to an edge: the cloud only decodes, so encoding is asked of one that can.

Same origin for the browser, so the page's content policy stays closed and the edge needs no CORS. What the edge answers
is a stranger's: bounded, parsed, and passed on field by field. Standard library on threads; a few at a time are plenty.
"""

from __future__ import annotations

import asyncio
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
from cloud_decoder.errors import UnknownFrame

AT_ONCE = 4
"""Pictures that may be on their way; each is held in memory."""
_ANSWER_BYTES = 65536
_NO_EDGE = "what answers at AEIC_CLOUD_EDGE_URL is no edge: mend the address"
_FRAME_FIELDS = {"id": str, "width": int, "height": int, "bytes": int, "bpp": float, "rate": int, "encode_ms": float}


class EdgeUnreachable(ServiceError):
    """The configured edge does not answer, or not as an edge does."""

    http_status = 503


class EdgeRefused(ServiceError):
    """The edge would not take the picture; its own status and words."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.http_status = status


class EdgeProxy:
    """``url`` is the edge's HTTP address, empty for none; ``tenant`` the only one whose pictures go through it."""

    def __init__(self, url: str, tenant: str, seconds: float = 30.0) -> None:
        if url and urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("AEIC_CLOUD_EDGE_URL must start with http:// or https://")
        self._url, self._tenant, self._seconds = url.rstrip("/"), tenant, seconds
        self._threads = ThreadPoolExecutor(AT_ONCE, "edge-proxy")
        self._under_way = 0

    def serves(self, tenant: str) -> bool:
        """Whether this tenant's pictures can be encoded. An edge's frames belong to one tenant: no other may add to
        them."""
        return bool(self._url) and tenant == self._tenant

    def why_not(self) -> str:
        """For people, where :meth:`serves` is false."""
        if self._url:
            return "The edge beside this cloud belongs to another tenant."
        return "No edge is configured here: set AEIC_CLOUD_EDGE_URL to the HTTP address of one."

    @contextlib.contextmanager
    def place(self, tenant: str) -> Iterator[None]:
        """Room for one picture, from before its body is read: it is held in memory.

        ``UnknownFrame`` where nothing could take it, ``Overloaded`` where too many are under way.
        """
        if not self.serves(tenant):
            raise UnknownFrame(self.why_not())
        if self._under_way >= AT_ONCE:
            raise Overloaded(f"{AT_ONCE} pictures are being encoded already: try again in a moment", retry_after=1.0)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def encode(self, picture: bytes, rate: str | None) -> dict[str, Any]:
        """The frame that the edge made of a JPEG, PNG or WebP file: id, width, height, bytes, bpp, rate, encode_ms."""
        query = "?" + urllib.parse.urlencode({"rate": rate}) if rate else ""
        found = await self._ask(f"/v1/frames{query}", picture)
        try:
            return {name: kind(found[name]) for name, kind in _FRAME_FIELDS.items()}
        except (KeyError, TypeError, ValueError):
            raise EdgeUnreachable(_NO_EDGE) from None

    async def status(self) -> dict[str, Any]:
        """How the edge is: source, frames and bytes in its spool, age of the oldest in seconds, state of its link."""
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
        """Let its threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._exchange, path, body)

    def _exchange(self, path: str, body: bytes | None) -> dict[str, Any]:
        headers = {"X-Source-Id": "page", "X-Captured-At": str(int(time.time() * 1000))} if body is not None else {}
        request = urllib.request.Request(self._url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=self._seconds) as answer:
                found = json.loads(answer.read(_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except (OSError, ValueError) as error:
            raise EdgeUnreachable(
                f"the edge does not answer ({type(error).__name__}): start it, or mend AEIC_CLOUD_EDGE_URL",
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
