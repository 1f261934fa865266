"""A client that requests pictures from the fleet all the time and counts the answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from uuid import UUID

import httpx

from tests.fleet.chaos.camera import Camera

RETRYABLE = {429, 503, 504}


class Client:
    """Requests pictures all the time and counts the answers."""

    def __init__(self, address: str, frames: list[tuple[UUID, bytes]], cameras: list[Camera]) -> None:
        self._address, self._frames, self._cameras = address, frames, cameras
        self.answers: Counter[str] = Counter()

    async def run(self, over: asyncio.Event, rng: random.Random) -> None:
        """A new connection for each question, as a balancer would see it."""
        while not over.is_set():
            await asyncio.sleep(0.05)
            known = [id for camera in self._cameras for id in camera.acked]
            if not known:
                continue
            try:
                async with httpx.AsyncClient(base_url=self._address, timeout=30) as http:
                    if rng.random() < 0.3:
                        answer = await http.post("/v1/decode?timeout=20", content=rng.choice(self._frames)[1])
                    else:
                        answer = await http.get(f"/v1/frames/{rng.choice(known)}/image?wait=20")
                self.answers[str(answer.status_code)] += 1
            except httpx.TransportError as error:  # refused, reset, cut: what any client tries again
                self.answers[type(error).__name__] += 1

    @property
    def failed(self) -> int:
        """Answers that no client could mend by asking again."""
        good = {"200", "202", *(str(status) for status in RETRYABLE)}
        return sum(count for answer, count in self.answers.items() if answer.isdigit() and answer not in good)
