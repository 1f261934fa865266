"""The same decoder behind LitServe, for benchmarks/serve.py: ``python -m benchmarks.rival_litserve PORT MAX_BATCH``.

Written as its documentation has it: one worker, requests decoded in batches, the answer encoded by the worker.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
from starlette.responses import Response

from cloud_decoder.images import formats
from cloud_decoder.inference.decoder import Decoder, DecoderSettings


class Rival(litserve.LitAPI):
    """A frame in base64 in, a PNG out."""

    def setup(self, device: str) -> None:
        """Once in the worker."""
        self.decoder = Decoder.from_bundle(settings=DecoderSettings(max_batch=self.max_batch_size))
        self.decoder.warm_up()

    def decode_request(self, request: dict[str, str]) -> bytes:
        """JSON to a frame."""
        return base64.b64decode(request["frame"])

    def predict(self, frames: Any) -> Any:
        """A list where requests are batched, else one frame."""
        return self.decoder.decode(frames) if self.max_batch_size > 1 else self.decoder.decode([frames])[0]

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """The decoder takes lists."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """And gives lists."""
        return output

    def encode_response(self, picture: Any) -> Response:
        """A picture to a PNG."""
        return Response(formats.encode(picture, formats.MASTER), media_type="image/png")


if __name__ == "__main__":
    cap = int(sys.argv[2])
    api = Rival(max_batch_size=cap, batch_timeout=0.01 if cap > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", timeout=600, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
