"""A whole AEIC network: codec, one-step UNet and picture decoder of one profile."""

from __future__ import annotations

from torch import Tensor, nn

from aeic.profiles import Profile
from aeic_nets.codec import Codec
from aeic_nets.unet import UNet
from aeic_nets.vae import PictureDecoder


class AEIC(nn.Module):
    """A whole network: ``codec``, ``unet`` and ``vae`` of one profile."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        self.profile = profile
        self.codec = Codec(profile)
        self.unet = UNet(profile.unet, profile.unet_channels, profile.residual_channels)
        self.vae = PictureDecoder(profile.vae, profile.residual_channels)

    def generate(self, y_hat: Tensor) -> Tensor:
        """y_hat (N, M, h, w), gain undone, to a picture (N, 3, 32h, 32w), about [-1, 1], not clamped."""
        latent, residual = self.codec.g_s(y_hat)
        picture: Tensor = self.vae(self.unet(latent) + residual)
        return picture

    def forward(self, x: Tensor, rate: int = 0) -> dict[str, Tensor]:
        """Picture (N, 3, H, W) in [-1, 1], sides multiples of 64, to ``x_hat`` and the codec's outputs."""
        return self.with_taps(x, rate)[0]

    def with_taps(self, x: Tensor, rate: int = 0) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        """The same, with g_a's features stage by stage and the UNet's taps beside it: what distillation compares."""
        analysis = self.codec.g_a.features(x)
        out = self.codec(analysis[-1], rate)
        latent, residual = self.codec.g_s(out["y_hat"])
        taps = self.unet.features(latent)
        out["x_hat"] = self.vae(taps[-1] + residual)
        return out, analysis, taps
