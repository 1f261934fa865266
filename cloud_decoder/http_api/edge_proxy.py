"""Sends pictures that are dropped on the page to an edge, which encodes them. The cloud itself only decodes.

The browser talks to the cloud only, so the page's content policy stays closed and the edge needs no CORS. The edge's
answers are untrusted: limited in size, parsed, and passed on field by field.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aeic_service.budgets import Budget
from aeic_service.errors import Overloaded, ServiceError
from cloud_decoder.errors import NoEdge
from cloud_decoder.threads import run_on

AT_ONCE = 4
"""Pictures in progress at once; each is held in memory."""
STATUS_AT_ONCE = 2
STATUS_SECONDS = 5.0
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
    """``url`` is the HTTP address of the edge, empty for none. Only pictures of ``tenant`` are sent to it.

    An exchange with the edge takes at most ``seconds`` in all, however slowly its answer drips.
    """

    def __init__(self, url: str, tenant: str, seconds: float = 30.0) -> None:
        parts = urllib.parse.urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("AEIC_CLOUD_EDGE_URL must start with http:// or https:// and name a host")
        self._parts, self._tenant, self._seconds = parts, tenant, seconds
        self._pictures = ThreadPoolExecutor(AT_ONCE, "edge-proxy")
        self._statuses = ThreadPoolExecutor(STATUS_AT_ONCE, "edge-status")
        self._places = {self._pictures: Budget(AT_ONCE), self._statuses: Budget(STATUS_AT_ONCE)}

    def serves(self, tenant: str) -> bool:
        """Whether this tenant's pictures can be encoded. The frames of an edge belong to one tenant."""
        return bool(self._parts.scheme) and tenant == self._tenant

    def why_not(self) -> str:
        """Why :meth:`serves` is false, as a sentence for the page."""
        if self._parts.scheme:
            return "The edge beside this cloud belongs to another tenant."
        return "No edge is configured here: set AEIC_CLOUD_EDGE_URL to the HTTP address of one."

    def check(self, tenant: str) -> None:
        """``NoEdge`` where no edge encodes for this tenant."""
        if not self.serves(tenant):
            raise NoEdge(self.why_not())

    async def encode(self, picture: bytes, rate: str | None, target_bytes: int | None = None) -> dict[str, Any]:
        """The frame that the edge made of a picture file: id, width, height, bytes, bpp, rate, encode_ms.

        With ``target_bytes``, the edge chooses the rate point, and scales the picture down if none fits.
        ``Overloaded`` where too many pictures are in progress.
        """
        asked = {"rate": rate, "target_bytes": target_bytes}
        query = urllib.parse.urlencode({name: value for name, value in asked.items() if value})
        query = query and f"?{query}"
        found = await self._ask(self._pictures, f"/v1/frames{query}", picture, self._seconds)
        try:
            return {name: kind(found[name]) for name, kind in _FRAME_FIELDS.items()}
        except (KeyError, TypeError, ValueError):
            raise EdgeUnreachable(_NO_EDGE) from None

    async def status(self) -> dict[str, Any]:
        """The edge's source, frames and bytes in its spool, age of the oldest in seconds, and state of its link."""
        found = await self._ask(self._statuses, "/v1/status", None, min(STATUS_SECONDS, self._seconds))
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
        for threads in self._places:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, threads: ThreadPoolExecutor, path: str, body: bytes | None, seconds: float) -> dict[str, Any]:
        with self._places[threads].part(1, refusal=self._busy):
            exchange = _Exchange(self._parts, path, body, seconds)
            end = asyncio.get_running_loop().call_later(seconds, exchange.abort)
            try:
                return await run_on(threads, exchange.run)
            finally:
                end.cancel()
                exchange.abort()  # if the client has hung up, or the service stops

    def _busy(self) -> Exception:
        return Overloaded("the edge is busy with other requests: try again in a moment", retry_after=1.0)


class _Exchange:
    """One request to the edge and its answer: :meth:`run` on a thread, :meth:`abort` from any other."""

    def __init__(self, edge: urllib.parse.SplitResult, path: str, body: bytes | None, seconds: float) -> None:
        secure = edge.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = kind(edge.hostname or "", edge.port, timeout=seconds)
        self._path, self._body = edge.path.rstrip("/") + path, body
        self._aborted = False

    def abort(self) -> None:
        """Let :meth:`run` end soon: with ``EdgeUnreachable``, unless it has ended."""
        self._aborted = True
        if (line := self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def run(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        body = self._body
        headers = {} if body is None else {"X-Source-Id": "page", "X-Captured-At": str(int(time.time() * 1000))}
        try:
            self._connection.connect()
            if self._aborted:
                raise TimeoutError
            self._connection.request("GET" if body is None else "POST", self._path, body, headers)
            answer = self._connection.getresponse()
            said = answer.read(_ANSWER_BYTES)
            if self._aborted:  # what came may be less than all
                raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            raise EdgeUnreachable(
                f"the edge does not answer ({type(error).__name__}): start it, or correct AEIC_CLOUD_EDGE_URL",
                retry_after=5.0,
            ) from None
        finally:
            self._connection.close()
        if answer.status >= 400:
            raise _refusal(answer.status, said)
        try:
            found = json.loads(said)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise EdgeUnreachable(_NO_EDGE)
        return found


def _refusal(status: int, said: bytes) -> ServiceError:
    try:
        detail = str(json.loads(said)["detail"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return EdgeUnreachable(f"the edge answered {status} without a reason", retry_after=5.0)
    if status >= 500:
        return EdgeUnreachable(f"the edge cannot take it now: {detail}", retry_after=5.0)
    return EdgeRefused(status, detail)
