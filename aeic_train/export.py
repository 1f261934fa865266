"""A training state (or a bundle's weights) to a bundle: ONNX graphs, integer tables, float16 weights, card, digests.

    aeic export --run runs/nano --calibration examples --out models/aeic-se-nano

The entropy model is exported in integers (docs/determinism.md): its steps are calibrated on the pictures of one folder,
and what exactness costs in bits is printed, on those of another if --validation names one.

What the bundle holds and what each graph takes and gives: docs/bitstream.md and aeic.bundle.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from aeic import profiles
from aeic.bundle import FORMAT, Bundle
from aeic.pixels import load_picture, pad_picture, to_tensor
from aeic.profiles import LATENT_STRIDE, SCALE_COUNT, SCALE_MAX, SCALE_MIN, SKIP_SCALE
from aeic.tables import gaussian_rows, rows_from_pmf
from aeic_nets.analysis import HalfAnalysis, fast_analysis
from aeic_nets.codec import Codec
from aeic_nets.graphs import write_graph
from aeic_nets.integer.calibrate import calibrate
from aeic_nets.integer.export import export_entropy
from aeic_nets.integer.model import MEAN_EXPONENT
from aeic_nets.integer.training import price
from aeic_nets.network import AEIC
from aeic_train.data import SUFFIXES
from aeic_train.weights import load_weights

DEFINES_BITSTREAM = ("tables.npz", "hyper_synthesis.onnx", *(f"context_{i}.onnx" for i in range(4)))
DECODERS = ("synthesis.onnx", "weights.safetensors")
"""The first of them that a bundle holds defines its bitstream too: another decoder is another model."""
LARGEST_SYNTHESIS = 100_000_000
"""Parameters up to which ``synthesis.onnx`` is written. ONNX Runtime keeps it in float32 and needs the memory twice
while loading, and the file format ends at 2 GiB; larger decoders run in torch, from ``weights.safetensors``."""
HYPER_REACH = 60
HYPER_TAIL = 1e-7


class HyperSynthesisGraph(nn.Module):
    """z symbols (N, Cz, hz, wz) int32 to the first base; adds the medians."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.h_s = codec.h_s
        self.register_buffer("medians", torch.from_numpy(hyper_medians(codec))[None, :, None, None])

    def forward(self, z_symbols: Tensor) -> Tensor:
        base: Tensor = self.h_s(z_symbols.float() + self.medians)
        return base


class ContextGraph(nn.Module):
    """One pass: base (N, M, h, w) to means float32 and table indexes int8 (-1: skipped)."""

    def __init__(self, codec: Codec, index: int) -> None:
        super().__init__()
        self.adapter_in, self.g_c, self.adapter_out = codec.adapter_in[index], codec.g_c, codec.adapter_out[index]

    def forward(self, base: Tensor) -> tuple[Tensor, Tensor]:
        means, scales = self.adapter_out(self.g_c(self.adapter_in(base))).chunk(2, dim=1)
        step = float(np.log(SCALE_MAX / SCALE_MIN)) / (SCALE_COUNT - 1)
        indexes = ((scales.clamp_min(1e-5).log() - float(np.log(SCALE_MIN))) / step).floor().clamp(0, SCALE_COUNT - 1)
        return means, torch.where(scales < SKIP_SCALE, -1.0, indexes).to(torch.int8)


class SynthesisGraph(nn.Module):
    """y_hat (N, M, h, w), gain undone, to a picture (N, 3, 32h, 32w) in [-1, 1]."""

    def __init__(self, model: AEIC) -> None:
        super().__init__()
        self.model = model

    def forward(self, y_hat: Tensor) -> Tensor:
        return self.model.generate(y_hat).clamp(-1, 1)


def hyper_medians(codec: Codec) -> NDArray[np.float32]:
    """The factorised prior's medians of the first rate point, (Cz,) float32: z_hat has one grid for all.

    They are rounded to the grid of the integer entropy model, on both sides alike.
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
    """tables.npz: integer frequencies for y and z, medians, gains."""
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


def write_graphs(model: AEIC, folder: Path) -> None:
    """The ONNX graphs that only one side runs, in float, with dynamic batch and sides."""
    codec, profile = model.codec, model.profile
    write_encoder_graphs(codec, folder)
    if sum(p.numel() for part in (codec.g_s, model.unet, model.vae) for p in part.parameters()) <= LARGEST_SYNTHESIS:
        latent = torch.zeros(2, profile.latent_channels, 128 // LATENT_STRIDE, 192 // LATENT_STRIDE)
        write_graph(SynthesisGraph(model), latent, folder / "synthesis.onnx", "y_hat", ["image"], half=True)


def write_encoder_graphs(codec: Codec, folder: Path) -> None:
    """analysis.onnx (rewritten for speed, aeic_nets.analysis), hyper_analysis.onnx, and what a card runs of the
    published sizes, analysis_half.onnx."""
    m, picture = codec.profile.latent_channels, torch.zeros(2, 3, 128, 192)
    write_graph(fast_analysis(codec.g_a), picture, folder / "analysis.onnx", "image", ["y"])
    if codec.profile.rates == 1:
        write_graph(HalfAnalysis(codec.g_a), picture, folder / "analysis_half.onnx", "image", ["y"])
    write_graph(codec.h_a, torch.zeros(2, m, 8, 12), folder / "hyper_analysis.onnx", "y", ["z"])


def write_float_entropy(codec: Codec, folder: Path) -> None:
    """The entropy graphs in float32: for comparison only. They hold on one machine, not between two."""
    m, n = codec.profile.latent_channels, codec.profile.hyper_channels
    symbols = torch.zeros(2, n, 2, 3, dtype=torch.int32)
    write_graph(HyperSynthesisGraph(codec), symbols, folder / "hyper_synthesis.onnx", "z_symbols", ["base"])
    for i in range(4):
        graph, base = ContextGraph(codec, i), torch.zeros(2, m, 4, 6)
        write_graph(graph, base, folder / f"context_{i}.onnx", "base", ["means", "indexes"])


@torch.no_grad()
def sample_latents(model: AEIC, pictures: Path, limit: int = 16) -> list[tuple[Tensor, int]]:
    """y (1, M, h, w), gain not applied, of up to ``limit`` pictures, each with a rate point; they take turns."""
    paths = sorted(p for p in pictures.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no pictures in {pictures}: give a folder with some to calibrate on")
    latents = []
    for number, path in enumerate(paths[:: max(1, len(paths) // limit)][:limit]):
        x = torch.from_numpy(to_tensor(pad_picture(load_picture(path))))[..., :768, :768]
        latents.append((model.codec.g_a(x), number % model.profile.rates))
    return latents


def with_gain(codec: Codec, latents: list[tuple[Tensor, int]]) -> list[Tensor]:
    return [y * codec.gains(rate)[0] for y, rate in latents]


def write_weights(model: AEIC, path: Path) -> None:
    """weights.safetensors: every parameter as float16."""
    save_file({name: p.detach().half().contiguous() for name, p in model.named_parameters()}, path)
    path.chmod(0o644)


def write_manifest(
    folder: Path,
    profile: profiles.Profile,
    name: str,
    rates: list[dict[str, object]],
    default: int,
    card: dict[str, object],
) -> None:
    """bundle.json with the digest of every file beside it."""
    files = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.name != "bundle.json"
    }
    defining = sorted((*DEFINES_BITSTREAM, *[name for name in DECODERS if name in files][:1]))
    lines = "".join(f"{file} {files[file]}\n" for file in defining)
    manifest = {
        "format": FORMAT,
        "name": name,
        "profile": profile.name,
        "latent_channels": profile.latent_channels,
        "hyper_channels": profile.hyper_channels,
        "rates": rates,
        "default_rate": default,
        "defines_bitstream": defining,
        "fingerprint": hashlib.sha256(lines.encode()).hexdigest()[:6],
        "files": files,
        "card": card,
    }
    (folder / "bundle.json").write_text(json.dumps(manifest, indent=2) + "\n")


def load_average(profile: profiles.Profile, run: Path | None, weights: Path | None) -> tuple[AEIC, dict[str, object]]:
    """The averaged weights of a run's state, or a bundle's weights, rounded to float16 as the bundle stores them."""
    model = AEIC(profile)
    facts: dict[str, object] = {}
    if run is not None:
        state = torch.load(run / "state.pt", weights_only=True)
        model.load_state_dict(state["average"])
        facts = {"steps": state["position"][2], "hours": round(state["seconds"] / 3600, 2)}
    elif weights is not None:
        load_weights(model, weights)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model.eval().requires_grad_(False), facts


def export(
    model: AEIC,
    out: Path,
    name: str,
    rates: list[dict[str, object]],
    default: int,
    card: dict[str, object],
    extras: list[Path],
    latents: list[tuple[Tensor, int]] | None,
) -> None:
    """Writes the bundle into ``out``, at once: a folder made beside it takes its place when it is whole.

    ``latents`` calibrate the integer entropy model; ``None`` exports it in float.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    folder.chmod(0o755)
    try:
        write_tables(model.codec, folder / "tables.npz")
        write_graphs(model, folder)
        if latents is None:
            write_float_entropy(model.codec, folder)
        else:
            export_entropy(model.codec, with_gain(model.codec, latents), folder, hyper_medians(model.codec))
        write_weights(model, folder / "weights.safetensors")
        for extra in extras:
            shutil.copy(extra, folder / extra.name)
        write_manifest(folder, model.profile, name, rates, default, card)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="aeic export", description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a training run")
    parser.add_argument("--weights", type=Path, help="or weights.safetensors of a bundle")
    parser.add_argument("--profile", default="nano", choices=sorted(profiles.PROFILES))
    parser.add_argument("--rates", default="0.045", help="expected bpp of each rate point, ascending, with commas")
    parser.add_argument("--default-rate", type=int, default=0)
    parser.add_argument("--name", default="aeic-se-nano")
    parser.add_argument("--card", type=Path, help="JSON with facts for the manifest")
    parser.add_argument("--include", type=Path, action="append", default=[], help="further files: card, log, samples")
    parser.add_argument("--calibration", type=Path, help="folder of pictures to calibrate the integer entropy model on")
    parser.add_argument("--validation", type=Path, help="folder of pictures to print the price of exactness on")
    parser.add_argument("--float-entropy", action="store_true", help="float entropy graphs: one machine only")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    if (options.run is None) == (options.weights is None):
        parser.error("give --run or --weights")
    if not options.calibration and not options.float_entropy:
        parser.error("give --calibration DIR with some photographs")
    profile = profiles.profile(options.profile)
    model, facts = load_average(profile, options.run, options.weights)
    card = json.loads(options.card.read_text()) if options.card else {}
    rates = [{"name": f"r{i}", "bpp": float(bpp)} for i, bpp in enumerate(options.rates.split(","))]
    if len(rates) != profile.rates:
        parser.error(f"profile {profile.name} has {profile.rates} rate points: give as many --rates")
    latents = None if options.float_entropy else sample_latents(model, options.calibration)
    if latents:
        judged = sample_latents(model, options.validation, limit=48) if options.validation else latents
        cost = price(model.codec, judged, calibrate(model.codec, with_gain(model.codec, latents)))
        facts["price_of_exactness_percent"] = round(cost["price_percent"], 2)
        bits = f"{cost['float_bits']:.0f} in float, {cost['exact_bits']:.0f} exact"
        print(f"bits a frame: {bits}: {cost['price_percent']:+.2f} %")
    card = facts | card
    export(model, options.out, options.name, rates, options.default_rate, card, options.include, latents)
    size = sum(p.stat().st_size for p in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.1f} MB, fingerprint {Bundle.load(options.out).fingerprint}")


if __name__ == "__main__":
    main()
