"""The client for asyncio. Except for async and await it equals :mod:`aeic_client.client`; a test compares the two."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx

from aeic_client.client import PAGE, RETRY_SECONDS
from aeic_client.messages import (
    PASSING,
    Event,
    EventParser,
    Frame,
    Known,
    Problem,
    Request,
    Source,
    asked,
    checked,
    decoded,
    headers,
    passes,
    pause,
    query,
)


class AsyncClient:
    """``url`` of the cloud, ``token`` if it asks for one, ``timeout`` in seconds for each network operation.

    ``verify`` is an ``ssl.SSLContext`` for a certificate authority or a client certificate of your own. ``http`` is a
    client of httpx with other settings, which stays yours to close; ``timeout`` and ``verify`` are then unused.
    A request is sent again up to ``retries`` times if it cannot be sent or the cloud answers 429, 502, 503 or 504;
    not where the budget of a source is spent (``urn:aeic:budget-spent``).

    Every method raises :class:`~aeic_client.messages.Problem` if the cloud refuses a request, and
    ``httpx.TransportError`` if it cannot be reached.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 90.0,
        verify: ssl.SSLContext | bool = True,
        retries: int = 3,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._url, self._headers, self._retries = url.rstrip("/"), headers(token), retries
        self._http = http or httpx.AsyncClient(timeout=timeout, verify=verify)
        self._owns_http = http is None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        if self._owns_http:
            await self._http.aclose()

    async def frames(
        self,
        *,
        source: str | None = None,
        state: str | None = None,
        rate: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AsyncIterator[Frame]:
        """All stored frames that fit, the newest arrival first; pages are fetched as they are needed."""
        asked = query(source=source, state=state, rate=rate, since=since, until=until, limit=PAGE)
        while True:
            page = (await self._send("GET", "/v1/frames", params=asked)).json()
            for document in page["frames"]:
                yield Frame.of(document)
            if page["next_cursor"] is None:
                return
            asked["cursor"] = page["next_cursor"]

    async def frame(self, id: UUID | str, wait: float = 0.0) -> Frame:
        """One frame; waits up to ``wait`` seconds for one that has not arrived."""
        return Frame.of((await self._send("GET", f"/v1/frames/{id}", params=query(wait=wait))).json())

    async def image(self, id: UUID | str, format: str = "png", width: int | None = None, wait: float = 30.0) -> bytes:
        """The reconstruction as a file. ``NotReady`` if it is not decoded within ``wait`` seconds."""
        asked = query(format=format, width=width, wait=wait)
        return decoded(await self._send("GET", f"/v1/frames/{id}/image", params=asked)).content

    async def bitstream(self, id: UUID | str) -> bytes:
        """The frame itself, unchanged: an .aeic file."""
        return (await self._send("GET", f"/v1/frames/{id}/bitstream")).content

    async def file(self, id: UUID | str) -> bytes:
        """The picture file that answers a request for an original, as the box sent it: nothing has checked it."""
        return (await self._send("GET", f"/v1/frames/{id}/file")).content

    async def decode(
        self, data: bytes, format: str = "png", width: int | None = None, timeout: float | None = None
    ) -> bytes:
        """Decode an .aeic file into a picture, without storing it."""
        asked = query(format=format, width=width, timeout=timeout)
        return (await self._send("POST", "/v1/decode", params=asked, content=data)).content

    async def encode(self, picture: bytes, rate: int | None = None) -> UUID:
        """Let the cloud's own edge (``AEIC_CLOUD_EDGE_URL``) encode and send a picture. Returns the id of its frame."""
        asked = query(rate=rate)
        answer = await self._send("POST", "/v1/encode", repeat=False, params=asked, content=picture)
        return UUID(answer.json()["id"])

    async def ask(
        self,
        id: UUID | str,
        kind: str = "region",
        *,
        region: tuple[int, int, int, int] | None = None,
        max_bytes: int = 1500,
        deadline: float = 60.0,
    ) -> Request:
        """Ask the box for more of a frame: ``region`` (x, y, width, height in pixels of the original), ``better``,
        ``now`` (a new picture of the same camera) or ``original`` (a picture file, of a region if one is given:
        :meth:`file`).

        The answer has at most ``max_bytes``; without it after ``deadline`` seconds the request is refused as expired.
        """
        body = asked(kind, region, max_bytes, deadline)
        answer = await self._send("POST", f"/v1/frames/{id}/requests", repeat=False, json=body)
        return Request.of(answer.json())

    async def request(self, request: Request, wait: float = 30.0) -> Request:
        """The present state of a request; waits up to ``wait`` seconds for its end."""
        path = f"/v1/frames/{request.frame}/requests/{request.id}"
        return Request.of((await self._send("GET", path, params=query(wait=wait))).json())

    async def requests(self, id: UUID | str) -> list[Request]:
        """The requests about a frame, the newest first; at most 200."""
        answer = await self._send("GET", f"/v1/frames/{id}/requests")
        return [Request.of(document) for document in answer.json()["requests"]]

    async def delete(self, id: UUID | str) -> None:
        """Delete a frame with its pictures and the answers to requests about it. A second call does nothing."""
        await self._send("DELETE", f"/v1/frames/{id}")

    async def delete_frames(self, source: str, *, since: datetime | None = None, until: datetime | None = None) -> int:
        """Delete the frames of a source, all or those that arrived in that time. Returns how many."""
        asked, count = query(source=source, since=since, until=until), 0
        while True:
            answer = (await self._send("DELETE", "/v1/frames", params=asked)).json()
            count += int(answer["deleted"])
            if answer["next_cursor"] is None:
                return count
            asked["cursor"] = answer["next_cursor"]

    async def sources(self) -> list[Source]:
        """The sources of frames, the latest first."""
        return [Source.of(document) for document in (await self._send("GET", "/v1/sources")).json()["sources"]]

    async def status(self) -> dict[str, Any]:
        """The cloud's version, bundles, device, frames by state, and whether it is ready."""
        return dict((await self._send("GET", "/v1/status")).json())

    async def events(self, last_id: str = "") -> AsyncIterator[Event]:
        """Events from now on, or those after the event of that id, over one connection. Ends when the cloud closes it.

        If the cloud does not keep all of them any more, it says so with a ``lost`` event.
        """
        parser, opened = EventParser(), False
        given = self._headers | ({"Last-Event-ID": last_id} if last_id else {})
        async with self._http.stream("GET", f"{self._url}/v1/events", headers=given) as answer:
            if not answer.is_success:
                await answer.aread()
                checked(answer)
            async for text in answer.aiter_text():
                found = list(parser.feed(text))
                if not opened:
                    opened = True
                    yield Event("open", id=parser.id)
                for event in found:
                    yield event

    async def follow(self) -> AsyncIterator[Frame]:
        """Every frame once, as soon as it is decoded, without end.

        A broken stream is opened again, and the cloud sends the events since then. If it does not keep all of them any
        more, the frames that were decoded in between are fetched from the list. It ends only with a ``Problem`` that a
        retry cannot solve, such as a wrong token.
        """
        known, first, last_id = Known(), True, ""
        while True:
            resumed = bool(last_id) and not first
            try:
                async for event in self.events(last_id):
                    last_id = event.id or last_id
                    if event.frame is not None:
                        if event.kind == "done" and known.take(event.frame, logged=bool(event.id)):
                            yield event.frame
                        continue
                    if event.kind == "request" or (event.kind == "open" and resumed):
                        continue
                    for frame in await self._missed(known):
                        if first:
                            known.pass_over(frame)
                        elif known.take(frame):
                            yield frame
                    first = False
            except httpx.TransportError:
                pass
            except Problem as problem:
                if problem.status not in PASSING:
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    async def pictures(self, format: str = "webp", width: int | None = None) -> AsyncIterator[tuple[Frame, bytes]]:
        """:meth:`follow`, each frame with its picture. Frames whose picture is no longer available are left out."""
        async for frame in self.follow():
            try:
                picture = await self.image(frame.id, format, width)
            except Problem as problem:
                if problem.status in (401, 403):
                    raise
                continue
            yield frame, picture

    async def _send(self, method: str, path: str, *, repeat: bool = True, **request: Any) -> httpx.Response:
        """The successful answer to a request. ``repeat``: it may be sent again although it may have arrived."""
        for attempt in range(self._retries + 1):
            answer = None
            try:
                answer = await self._http.request(method, self._url + path, headers=self._headers, **request)
            except httpx.TransportError:
                if attempt == self._retries or not repeat:
                    raise
            if answer is not None and (not passes(answer) or attempt == self._retries):
                return checked(answer)
            await asyncio.sleep(pause(attempt, answer))
        raise AssertionError("the last attempt returns or raises")

    async def _missed(self, known: Known) -> list[Frame]:
        """Decoded frames since the newest known one, oldest first. The first call takes the newest page."""
        found: list[Frame] = []
        async for frame in self.frames(state="done", since=known.since):
            found.append(frame)
            if known.since is None and len(found) == PAGE:
                break
        return found[::-1]
