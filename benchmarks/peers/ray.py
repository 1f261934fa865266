"""The same decoder behind Ray Serve, for benchmarks/cloud/serve.py: ``python -m benchmarks.peers.ray PORT MAX_BATCH``.

It follows Ray Serve's documentation: one replica with ``serve.batch``, which encodes the answers.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

CAP = int(sys.argv[2])


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0, "runtime_env": {}})
class Peer:
    """Takes a frame and returns a PNG file."""

    def __init__(self, cap: int) -> None:
        from cloud_decoder.inference.decoder import Decoder, DecoderSettings

        self.decoder = Decoder.from_bundle(settings=DecoderSettings(max_batch=cap))
        self.decoder.warm_up()

    @serve.batch(max_batch_size=CAP, batch_wait_timeout_s=0.01 if CAP > 1 else 0.0)
    async def decode(self, frames: list[bytes]) -> list[bytes]:
        """Decode a batch that Ray has formed."""
        from cloud_decoder.images import formats

        return [formats.encode(picture, formats.MASTER) for picture in self.decoder.decode(frames)]

    async def __call__(self, request: Request) -> Any:
        """Answer one request."""
        return Response(await self.decode(await request.body()), media_type="image/png")


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # sigwait receives the signals, not Ray
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Peer.bind(CAP))  # type: ignore[attr-defined]  # Ray's decorator is untyped
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
