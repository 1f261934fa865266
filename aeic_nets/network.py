"""A whole AEIC network: codec, one-step UNet and picture decoder of one profile."""

from __future__ import annotations

from torch import Tensor

from aeic.profiles import Profile
from aeic_nets.codec import Codec
from aeic_nets.synthesis import PictureGenerator


class AEIC(PictureGenerator):
    """A whole network: ``codec``, ``unet`` and ``vae`` of one profile."""

    codec: Codec

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile, Codec(profile))

    def forward(self, x: Tensor, rate: int = 0) -> dict[str, Tensor]:
        """Picture (N, 3, H, W) in [-1, 1], sides multiples of 64, to ``x_hat`` and the codec's outputs."""
        return self.with_taps(x, rate)[0]

    def with_taps(self, x: Tensor, rate: int = 0) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        """The same, and the features of every stage of g_a and the taps of the UNet, which distillation compares."""
        analysis = self.codec.g_a.features(x)
        out = self.codec(analysis[-1], rate)
        latent, residual = self.codec.g_s(out["y_hat"])
        taps = self.unet.features(latent)
        out["x_hat"] = self.vae(taps[-1] + residual)
        return out, analysis, taps
