"""Writes tables.npz of a bundle: integer frequencies, medians and gains (docs/bitstream.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aeic.tables import gaussian_rows, rows_from_pmf
from aeic_nets.codec import Codec
from aeic_nets.integer.model import MEAN_EXPONENT

HYPER_REACH = 60
HYPER_TAIL = 1e-7


def hyper_medians(codec: Codec) -> NDArray[np.float32]:
    """The medians of z, (Cz,) float32: those of the first rate point, because z_hat has one grid for all.

    They are rounded to the grid of the integer entropy model, which both sides use.
    """
    quantiles = codec.entropy_bottleneck.quantiles.detach()[: codec.profile.hyper_channels, 0, 1]
    return (np.rint(quantiles.numpy() / 2.0**MEAN_EXPONENT) * 2.0**MEAN_EXPONENT).astype(np.float32)


def hyper_pmfs(codec: Codec) -> tuple[list[NDArray[np.float64]], list[int]]:
    """The factorised prior at every integer of each channel's range, for every rate: R * Cz lists and their offsets."""
    model, channels = codec.entropy_bottleneck, codec.profile.hyper_channels * codec.profile.rates
    values = torch.arange(-HYPER_REACH, HYPER_REACH + 1, dtype=torch.float32)
    medians = torch.from_numpy(np.tile(hyper_medians(codec), codec.profile.rates))
    with torch.no_grad():
        likelihood, _, _ = model._likelihood(values[None, None] + medians[:, None, None])
    pmfs, offsets = [], []
    for row in likelihood.reshape(channels, -1).double().numpy():
        inside = np.flatnonzero((np.cumsum(row) > HYPER_TAIL) & (np.cumsum(row[::-1])[::-1] > HYPER_TAIL))
        low = min(int(inside[0]), HYPER_REACH - 2)
        high = max(int(inside[-1]), HYPER_REACH + 2)
        pmfs.append(row[low : high + 1])
        offsets.append(low - HYPER_REACH)
    return pmfs, offsets


def write_tables(codec: Codec, path: Path) -> None:
    """Write tables.npz: integer frequencies for y and z, medians and gains."""
    profile = codec.profile
    y_lengths, y_offsets, y_freqs = gaussian_rows()
    z_lengths, z_offsets, z_freqs = rows_from_pmf(*hyper_pmfs(codec))
    shape = (profile.rates, profile.hyper_channels)
    gains = np.ones((profile.rates, profile.latent_channels), np.float32)
    inverse = gains
    if profile.rates > 1:
        gains = codec.log_gain.detach().exp().numpy()
        inverse = codec.log_inverse_gain.detach().exp().numpy()
    np.savez_compressed(
        path,
        y_lengths=y_lengths,
        y_offsets=y_offsets,
        y_freqs=y_freqs,
        z_lengths=z_lengths.reshape(shape),
        z_offsets=z_offsets.reshape(shape),
        z_freqs=z_freqs,
        z_medians=hyper_medians(codec),
        gains=gains,
        inverse_gains=inverse,
    )
