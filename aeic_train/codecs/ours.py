"""Our own codec behind the same interface: a bundle's encoder and decoder in one process."""

from __future__ import annotations

from collections.abc import Sequence

from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from aeic.pixels import from_tensor, pad_picture, to_tensor
from aeic_train.codecs.base import CodecUnavailable, Picture


class OurCodec:
    """A bundle's encoder and decoder in one process, on ONNX Runtime. The setting is the rate number."""

    def __init__(self, bundle: Bundle, threads: int = 0, rates: Sequence[int] | None = None) -> None:
        self.name = f"{bundle.name}-{bundle.fingerprint}"
        known = [rate.number for rate in bundle.rates]
        self.settings = known if rates is None else list(rates)
        if unknown := [rate for rate in self.settings if rate not in known]:
            raise CodecUnavailable(f"{self.name} has no rate {unknown[0]}: choose from {known}")
        self.codec = LatentCodec(bundle, threads)
        self._analysis, self._synthesis = bundle.session("analysis", threads), bundle.session("synthesis", threads)

    def encode(self, picture: Picture, setting: int) -> bytes:
        height, width = picture.shape[:2]
        (y,) = self._analysis.run(None, {"image": to_tensor(pad_picture(picture))})
        return self.codec.encode(y[0], setting, width, height)

    def decode(self, data: bytes, width: int = 0, height: int = 0) -> Picture:
        """The size comes from the frame; the arguments are ignored."""
        latents = self.codec.decode(data)
        (image,) = self._synthesis.run(None, {"y_hat": latents.y_hat[None]})
        return from_tensor(image[0])[: latents.frame.height, : latents.frame.width]
