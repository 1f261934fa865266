"""The same decoder behind LitServe, for benchmarks.cloud.serve: ``python -m benchmarks.peers.litserve PORT MAX_BATCH``.

It follows LitServe's documentation: one worker decodes requests in batches and encodes the answers.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
from starlette.responses import Response

from cloud_decoder.images import formats
from cloud_decoder.inference.decoder import Decoder, DecoderSettings


class Peer(litserve.LitAPI):
    """Takes a frame in base64 and returns a PNG file."""

    def setup(self, device: str) -> None:
        """Load the decoder; LitServe calls this once in the worker."""
        self.decoder = Decoder.from_bundle(settings=DecoderSettings(max_batch=self.max_batch_size))
        self.decoder.warm_up()

    def decode_request(self, request: dict[str, str]) -> bytes:
        """The frame of a JSON request."""
        return base64.b64decode(request["frame"])

    def predict(self, frames: Any) -> Any:
        """Decode a list of frames if requests are batched, else one frame."""
        return self.decoder.decode(frames) if self.max_batch_size > 1 else self.decoder.decode([frames])[0]

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """The requests as the list that the decoder takes."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """The decoder's pictures as a list."""
        return output

    def encode_response(self, picture: Any) -> Response:
        """The picture as a PNG file."""
        return Response(formats.encode(picture, formats.MASTER), media_type="image/png")


if __name__ == "__main__":
    cap = int(sys.argv[2])
    api = Peer(max_batch_size=cap, batch_timeout=0.01 if cap > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", timeout=600, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
