"""Exports a training state, or a bundle's weights, as a bundle: ONNX graphs, integer tables, weights, card, digests.

    aeic export --run runs/nano --calibration examples --out models/aeic-se-nano
    aeic export --profile se --random --out aeic-se-onnx      # aeic_train.export.random_weights

The entropy model is exported in integers (docs/determinism.md). Its steps are those of the run's exact stages, or else
they are calibrated on the pictures of --calibration. The command prints the cost of exactness in bits, on the pictures
of --validation if given.

docs/bitstream.md and aeic.bundle describe the files of the bundle and the inputs and outputs of each graph.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from aeic import profiles
from aeic.bundle import FORMAT, SHARED_FROM, Bundle
from aeic.pixels import load_picture, pad_picture, to_tensor
from aeic_nets.codec import Codec
from aeic_nets.integer.calibrate import calibrate
from aeic_nets.integer.export import GPU_ENTROPY, export_entropy, write_gpu_entropy
from aeic_nets.integer.model import Site
from aeic_nets.integer.training import price
from aeic_nets.network import AEIC
from aeic_train.checkpoints import load_weights
from aeic_train.data.photographs import SUFFIXES
from aeic_train.export.onnx_graphs import write_float_entropy, write_graphs
from aeic_train.export.tables import hyper_medians, write_tables

DEFINES_BITSTREAM = ("tables.npz", "hyper_synthesis.onnx", *(f"context_{i}.onnx" for i in range(4)))
AUXILIARY = ("integer.npz", GPU_ENTROPY, *(f"analysis_{number}.onnx" for number in range(3)))
"""Files that repeat, in another form, what others define. They are in neither the fingerprint nor the bundle digest."""
DECODERS = ("synthesis.onnx", "weights.safetensors")
"""The first of these that a bundle has counts in its fingerprint too, because another decoder is another model."""


@torch.no_grad()
def sample_latents(model: AEIC, pictures: Path, limit: int = 16) -> list[tuple[Tensor, int]]:
    """y (1, M, h, w) before the gain, of up to ``limit`` pictures, each with a rate point. Rate points take turns."""
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
    """Write weights.safetensors, with every parameter as float16."""
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
    """Write bundle.json, with the digest of every file beside it."""
    digests = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.name != "bundle.json"
    }
    auxiliary = {name: digests.pop(name) for name in AUXILIARY if name in digests}
    files = digests
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
        "auxiliary": auxiliary,
        "card": card,
    }
    (folder / "bundle.json").write_text(json.dumps(manifest, indent=2) + "\n")


def trained_sites(run: Path) -> dict[str, Site] | None:
    """The places where training rounded the entropy model, if the last stages were exact or did not change the bits."""
    sites = torch.load(run / "state.pt", weights_only=True, map_location="cpu").get("sites")
    return {name: Site(**site) for name, site in sites.items()} if sites else None


def load_average(profile: profiles.Profile, run: Path | None, weights: Path | None) -> tuple[AEIC, dict[str, object]]:
    """The averaged weights of a run's state, or a bundle's weights, rounded to float16 as the bundle stores them."""
    model = AEIC(profile)
    facts: dict[str, object] = {}
    if run is not None:
        state = torch.load(run / "state.pt", weights_only=True, map_location="cpu")
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
    sites: dict[str, Site] | None,
) -> None:
    """Write the bundle to a folder beside ``out``, which replaces ``out`` when it is complete.

    ``sites`` say where the integer entropy model rounds; ``None`` exports it in float.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    folder.chmod(0o755)
    try:
        write_tables(model.codec, folder / "tables.npz")
        write_graphs(model, folder)
        if sites is None:
            write_float_entropy(model.codec, folder)
        else:
            integers = export_entropy(model.codec, sites, folder, hyper_medians(model.codec))
            integers.save(folder / "integer.npz")
            if model.profile.latent_channels >= SHARED_FROM:  # a small model is as fast on a CPU
                write_gpu_entropy(integers, folder)
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
    parser = argparse.ArgumentParser(
        prog="aeic export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="folder of a training run")
    parser.add_argument("--weights", type=Path, help="weights.safetensors of a bundle, instead of --run")
    parser.add_argument("--profile", default="nano", choices=sorted(profiles.PROFILES))
    parser.add_argument("--rates", default="0.045", help="expected bpp of each rate point, ascending, with commas")
    parser.add_argument("--default-rate", type=int, default=0)
    parser.add_argument("--name", default="aeic-se-nano")
    parser.add_argument("--card", type=Path, help="JSON with facts for the manifest")
    parser.add_argument("--include", type=Path, action="append", default=[], help="further files: card, log, samples")
    parser.add_argument("--calibration", type=Path, help="folder of pictures to calibrate the integer entropy model on")
    parser.add_argument("--validation", type=Path, help="folder of pictures on which the cost of exactness is measured")
    parser.add_argument(
        "--float-entropy", action="store_true", help="export the entropy model in float, for use on one machine only"
    )
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
    sites = None
    if not options.float_entropy:
        sites = trained_sites(options.run) if options.run else None
        latents = sample_latents(model, options.calibration)
        if not sites:
            sites = calibrate(model.codec, with_gain(model.codec, latents))
        checked = sample_latents(model, options.validation, limit=48) if options.validation else latents
        cost = price(model.codec, checked, sites)
        facts["price_of_exactness_percent"] = round(cost["price_percent"], 2)
        bits = f"{cost['float_bits']:.0f} in float, {cost['exact_bits']:.0f} exact"
        print(f"bits a frame: {bits}: {cost['price_percent']:+.2f} %")
    card = facts | card
    export(model, options.out, options.name, rates, options.default_rate, card, options.include, sites)
    size = sum(p.stat().st_size for p in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.1f} MB, fingerprint {Bundle.load(options.out).fingerprint}")


if __name__ == "__main__":
    main()
