"""Converts the official files to a bundle.

    aeic convert --sd-turbo DIR --half-decoder FILE --checkpoint FILE --calibration PICTURES --out BUNDLE

Every tensor is checked by name and shape. If some are missing, they are listed and nothing is written. LoRA is merged,
the ends are folded to four channels with the same result (docs/how-to/official.md), and the entropy model is quantised
on the calibration pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from aeic import profiles
from aeic.bundle import Bundle
from aeic.errors import BundleError
from aeic.profiles import Profile
from aeic_nets.folding import fold
from aeic_nets.integer.calibrate import calibrate
from aeic_nets.integer.training import price
from aeic_nets.network import AEIC
from aeic_nets.official import keys
from aeic_nets.official.files import PUBLISHED_SHA256, SD_TURBO_FILES, find_sd_turbo, read_official
from aeic_nets.official.weights import load_codec, load_unet, load_vae
from aeic_train.export.bundle import export, sample_latents, with_gain

__all__ = ["SD_TURBO_FILES", "build", "check", "choose_profile", "find_sd_turbo", "main", "read_official"]
_SHOWN = 20
# Parts of SD-Turbo that one step without text does not need. Both ends come from the AEIC checkpoint.
_DROPPED = re.compile(r"attn2\.|time_emb|transformer_blocks\.\d+\.norm2\.|^conv_(in|out)\.")
CARD = """# {name}

An AEIC-{upper} converted from the authors' files. Not trained here, and not ours:

- the codec and the UNet's adaptation: the AEIC checkpoint, under its authors' licence;
- the UNet's base: SD-Turbo by Stability AI, under Stability AI's own licence, which limits commercial use;
- the picture decoder: the half VAE decoder that AEIC takes over, under its authors' licence.

Read these licences before using this bundle, and pass them on with it.

| source | file | sha256 |
|---|---|---|
{sources}
"""


def choose_profile(files: Mapping[str, Mapping[str, Tensor]], candidates: list[Profile]) -> Profile:
    """The profile whose codec fits the checkpoint best."""

    def distance(profile: Profile) -> int:
        missing, _, misshapen = keys.differences(files["codec"], keys.codec_keys(profile))
        return len(missing) + len(misshapen)

    return min(candidates, key=distance)


def check(files: Mapping[str, Mapping[str, Tensor]], profile: Profile) -> list[str]:
    """The names of unused tensors. ``BundleError`` lists every tensor that is missing or has another shape."""
    wanted = {
        "codec": keys.codec_keys(profile),
        "unet_ckpt": keys.trained_unet_keys(profile),
        "sd_unet": keys.sd_turbo_keys(profile),
        "half": keys.half_decoder_keys(profile),
    }
    faults, extras = [], []
    for space, shapes in wanted.items():
        missing, extra, misshapen = keys.differences(files[space], shapes)
        faults += [f"{space}: missing {name}" for name in missing] + [f"{space}: {text}" for text in misshapen]
        extras += [f"{space}: {name}" for name in extra if not (space == "sd_unet" and _DROPPED.search(name))]
    if faults:
        shown = "\n  ".join(faults[:_SHOWN])
        more = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise BundleError(f"these are not the official files of profile {profile.name}:\n  {shown}{more}")
    return extras


def build(files: Mapping[str, Mapping[str, Tensor]], profile: Profile, folded: bool) -> AEIC:
    """The network with LoRA merged, folded if asked for."""
    with torch.device("meta"):
        model = AEIC(profile)
    load_codec(model.codec, files["codec"])
    load_unet(model.unet, files["sd_unet"], files["unet_ckpt"])
    load_vae(model.vae, files["half"])
    model.eval().requires_grad_(False)
    if folded:
        fold(model)
    return model


class Progress:
    """Numbered steps on stderr, each with the seconds since the beginning."""

    def __init__(self, steps: int) -> None:
        self._steps, self._step, self._started = steps, 0, time.monotonic()

    def __call__(self, text: str) -> None:
        """Begin the next step."""
        self._step += 1
        seconds = time.monotonic() - self._started
        print(f"[{self._step}/{self._steps}] {seconds:4.0f} s  {text}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="aeic convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sd-turbo", type=Path, required=True, help="SD-Turbo's folder")
    parser.add_argument("--half-decoder", type=Path, required=True, help="halfDecoder.ckpt")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the AEIC checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--profile", choices=sorted(profiles.PROFILES), help="default: what the checkpoint fits")
    parser.add_argument("--calibration", type=Path, help="folder of pictures to calibrate the integer entropy model on")
    parser.add_argument("--float-entropy", action="store_true", help="float entropy graphs: one machine only")
    parser.add_argument("--unfolded", action="store_true", help="keep the 256 channels into the picture decoder")
    parser.add_argument("--bpp", type=float, default=0.01, help="expected bits a pixel of this checkpoint")
    parser.add_argument("--name", help="default: aeic-PROFILE-official")
    options = parser.parse_args(argv)
    if not options.calibration and not options.float_entropy:
        parser.error("give --calibration DIR with some photographs, or --float-entropy")
    sd_turbo = find_sd_turbo(options.sd_turbo)
    progress = Progress(4 if options.float_entropy else 5)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{options.out.name}-", dir=options.out.parent) as scratch:
        sources = (sd_turbo, options.half_decoder, options.checkpoint)
        for path in sources:
            if not path.is_file():
                raise BundleError(f"there is no file {path}: docs/how-to/official.md says where to get it")
        progress(f"reading {sum(path.stat().st_size for path in sources) / 1e9:.1f} GB from three files")
        files = read_official(*sources, scratch=Path(scratch))
        candidates = [profile for profile in profiles.PROFILES.values() if profile.rates == 1]
        profile = profiles.profile(options.profile) if options.profile else choose_profile(files, candidates)
        progress(f"comparing names and shapes of all tensors with profile {profile.name}")
        for name in check(files, profile):
            print(f"not needed: {name}", file=sys.stderr)
        progress("merging LoRA" + ("" if options.unfolded else ", folding the picture decoder's input"))
        model = build(files, profile, folded=not options.unfolded)
        files.clear()
        name = options.name or f"aeic-{profile.name}-official"
        card: dict[str, object] = {"source": "official checkpoint, converted", "folded": not options.unfolded}
        sites = None
        if not options.float_entropy:
            progress(f"calibrating the integer entropy model on {options.calibration}")
            latents = sample_latents(model, options.calibration)
            sites = calibrate(model.codec, with_gain(model.codec, latents))
            cost = price(model.codec, latents, sites)
            card["price_of_exactness_percent"] = round(cost["price_percent"], 2)
            bits = f"{cost['float_bits']:.0f} in float, {cost['exact_bits']:.0f} exact"
            print(f"bits a frame: {bits}: {cost['price_percent']:+.2f} %")
        text = Path(scratch) / "model_card.md"
        text.write_text(CARD.format(name=name, upper=profile.name.upper(), sources=_sources(sources)))
        progress(f"writing {options.out}")
        rates: list[dict[str, object]] = [{"name": "r0", "bpp": options.bpp}]
        export(model, options.out, name, rates, 0, card, [text], sites)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.1f} MB, fingerprint {Bundle.load(options.out).fingerprint}")
    return 0


def _sources(paths: tuple[Path, ...]) -> str:
    rows = []
    for kind, path in zip(("SD-Turbo UNet", "half VAE decoder", "AEIC checkpoint"), paths, strict=True):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        known = ", as published" if digest in PUBLISHED_SHA256.values() else ""
        rows.append(f"| {kind} | {path.name} | {digest}{known} |")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
