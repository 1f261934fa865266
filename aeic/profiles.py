"""All network sizes: ``se`` and ``me`` as published, ``nano`` for this project. No other module defines a width.

Source: arXiv 2512.12229 for ``se`` and ``me``; all sizes side by side in docs/model.md section 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LATENT_STRIDE = 32
"""A latent element stands for 32 x 32 pixels."""
PICTURE_MULTIPLE = 64
"""Pictures are padded to multiples of this many pixels, so that both sides of the latent are even."""
HYPER_STRIDE = 4
"""A hyper-latent element stands for 4 x 4 latent elements."""
SKIP_SCALE = 0.08
"""Below this scale nothing is coded: the residual is zero on both sides."""
SCALE_COUNT = 64
SCALE_MIN = 0.11
SCALE_MAX = 256.0
"""There is one coding table for each of SCALE_COUNT log-spaced scales from SCALE_MIN to SCALE_MAX."""


@dataclass(frozen=True)
class UNetSizes:
    """The one-step UNet at 1/8 scale. ``attention`` says which stages have transformers; the middle always has one."""

    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int
    head_width: int
    norm_groups: int


@dataclass(frozen=True)
class VAESizes:
    """The picture decoder. ``widths`` go from 1/8 scale towards the picture; every stage but the last doubles the side.

    ``patch`` is the pixel-shuffle factor after the last convolution (1 for the published sizes).
    """

    widths: tuple[int, ...]
    layers: int
    mid_attention: bool
    norm_groups: int
    patch: int


@dataclass(frozen=True)
class Profile:
    """Every size of one AEIC network."""

    name: str
    analysis_widths: tuple[int, ...]
    analysis_depth: int  # StarBlocks per stage of g_a
    latent_channels: int  # M
    context_width: int  # X
    context_depth: int  # pairs of InceptionNeXt and gated blocks in g_c
    synthesis_widths: tuple[int, ...]  # at 1/32, 1/16, 1/8
    unet_channels: int  # first part of g_s' output, into the UNet
    residual_channels: int  # second part, added to the UNet's output
    unet: UNetSizes
    vae: VAESizes
    rates: int = 1  # rate points, each with its own gains

    @property
    def hyper_channels(self) -> int:
        """Channels of z."""
        return self.latent_channels // 2


_SD_UNET = UNetSizes((320, 640, 1280, 1280), (True, True, True, False), layers=2, head_width=64, norm_groups=32)
_HALF_VAE = VAESizes((256, 256, 128, 64), layers=3, mid_attention=True, norm_groups=32, patch=1)

SE = Profile(
    name="se",
    analysis_widths=(32, 64, 128, 192, 256),
    analysis_depth=1,
    latent_channels=256,
    context_width=512,
    context_depth=3,
    synthesis_widths=(1024, 768, 512),
    unet_channels=320,
    residual_channels=256,
    unet=_SD_UNET,
    vae=_HALF_VAE,
)
ME = replace(
    SE,
    name="me",
    analysis_widths=(64, 128, 192, 256, 320),
    analysis_depth=2,
    latent_channels=320,
    context_width=960,
    context_depth=4,
)
NANO = Profile(
    name="nano",
    analysis_widths=(16, 32, 96, 128, 128),
    analysis_depth=1,
    latent_channels=128,
    context_width=128,
    context_depth=2,
    synthesis_widths=(128, 128, 96),
    unet_channels=64,
    residual_channels=64,
    unet=UNetSizes((64, 96, 128), (False, False, False), layers=1, head_width=32, norm_groups=8),
    vae=VAESizes((64, 32, 32), layers=1, mid_attention=False, norm_groups=8, patch=2),
    rates=6,
)
NANO_ME = replace(
    NANO,
    name="nano-me",
    analysis_widths=(32, 64, 128, 160, 128),
    analysis_depth=2,
    context_width=192,
    context_depth=3,
)
"""Nano's teacher, as ME is SE's: two StarBlocks a stage, a wider and deeper context. y and the decoder are as wide as
nano's, so that latents and UNet features are compared without a projection."""
PROFILES = {profile.name: profile for profile in (SE, ME, NANO, NANO_ME)}


def profile(name: str) -> Profile:
    """The profile called ``name``; ``ValueError`` lists the known ones."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}") from None
