"""Compares our networks at full size with golden vectors that were made with the research modules.

    aeic bench goldens DIR --profile se|me [--parts codec] [--paths torch]

DIR holds golden_SE.npz (or _ME), golden_meta.json and optionally golden_entropy_tables.npz. Everything is computed by
torch. g_a and the entropy model are also computed by ONNX Runtime (names that begin with onnx). Weights are computed
from the names of the tensors (aeic_nets.official.golden_weights), part by part, so memory stays under 5 GB. Exit 0 only
if every array is within its tolerance and every symbol and stream byte is equal; the last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aeic import profiles
from aeic.errors import InputError
from aeic.profiles import LATENT_STRIDE, SCALE_MIN, Profile
from aeic_nets.codec import Codec
from aeic_nets.folding import channel_averages
from aeic_nets.likelihood import LIKELIHOOD_MIN
from aeic_nets.official import keys, range_coder, tables
from aeic_nets.official.flows import FLOWS, encode_flow
from aeic_nets.official.golden_weights import GoldenTensors, golden_picture
from aeic_nets.official.onnx_parts import run_by_onnx
from aeic_nets.official.weights import load_codec, load_unet, load_vae
from aeic_nets.synthesis import Synthesis
from aeic_nets.unet import UNet
from aeic_nets.vae import PictureDecoder

PARTS = ("codec", "g_s", "unet", "vae")
_TOLERANCES = {"x": 1e-5, "y": 1e-4, "image_clamped_sub4_f16": 1.5e-3}
_TOLERANCE = 1e-3
_EXACT = ("z_sym", "y_sym", "coded_sym", "bitstream")
_AFTER_CODEC = {"lT": 1, "res": 1, "unet": 2, "l0_groupmean4": 2, "image": 3}
SAFE_MARGIN = 1e-4
"""Of a flow whose vectors lie nearer than this to a rounding boundary, or to the scale below which nothing is coded,
the arrays are shown, not required."""
_INDEX_SLACK = 4
"""Scale indexes may differ by one step at this many places: no vector protects them (docs/model.md section 8.6)."""

Arrays = dict[str, NDArray[Any]]


class Comparisons:
    """The comparisons, with one printed line for each, and their result."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def add(self, name: str, error: float, tolerance: float, required: bool = True) -> None:
        """Compare ``error`` with ``tolerance``. A comparison that is not required is printed but cannot fail."""
        ok = bool(error <= tolerance)
        self.rows[name] = {"error": float(error), "tolerance": tolerance, "ok": ok, "required": required}
        verdict = "ok" if ok else "FAILED" if required else "differs (not required)"
        print(f"{name:28} {error:10.3g}  of {tolerance:8.3g}  {verdict}", flush=True)

    @property
    def ok(self) -> bool:
        """Whether something was compared and everything that is required holds."""
        return bool(self.rows) and all(row["ok"] or not row["required"] for row in self.rows.values())


@torch.inference_mode()
def compute(
    profile: Profile,
    meta: Mapping[str, Any],
    parts: int,
    golden: Mapping[str, NDArray[Any]],
    paths: Sequence[str] = ("torch",),
) -> dict[str, Arrays]:
    """Every array that the golden files may hold, in full, for the first ``parts`` of PARTS, by path of computation.

    Streams are written with the scale indexes of ``golden`` where ours are within the slack of them. The ``onnx`` path
    has the arrays of the codec only.
    """
    height, width = picture_size(meta, golden)
    x = golden_picture(height, width, meta["phase"])
    codec_weights = GoldenTensors("codec", keys.codec_keys(profile))
    with torch.device("meta"):
        codec = Codec(profile)
    del codec.g_s  # 67 M parameters, so it is built as a separate part
    load_codec(codec, codec_weights)
    z_tables, y_tables = tables.factorised_tables(codec), tables.gaussian_tables()
    found = {"torch": _encode(codec, x, golden, z_tables, y_tables)}
    if "onnx" in paths:
        run_by_onnx(codec)
        found["onnx"] = _encode(codec, x, golden, z_tables, y_tables)
    del codec
    arrays = found["torch"]
    arrays |= _packed("y", y_tables) | _packed("z", z_tables, f"_{profile.name.upper()}")
    letters = [letter for letter in FLOWS if any(name.startswith(f"{letter}_") for name in golden)]
    if parts > 1 and letters:
        y_hats = {letter: torch.from_numpy(arrays[f"{letter}_y_hat"]) for letter in letters}
        arrays |= _generate(profile, codec_weights, y_hats, parts)
    return found


def picture_size(meta: Mapping[str, Any], golden: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """Height and width of the golden picture, from the metadata or the latents."""
    if "x" in meta["tensors"]:
        height, width = meta["tensors"]["x"]["shape"][-2:]
        return height, width
    latent = next((value.shape for name, value in golden.items() if name.endswith(("_y", "_y_sym", "_y_hat"))), None)
    if latent is None:
        raise InputError("neither golden_meta.json nor the vectors contain the size of the picture")
    return latent[-2] * LATENT_STRIDE, latent[-1] * LATENT_STRIDE


def _encode(
    codec: Codec,
    x: Tensor,
    golden: Mapping[str, NDArray[Any]],
    z_tables: list[tables.Table],
    y_tables: list[tables.Table],
) -> Arrays:
    """Picture, latents, all flows with their streams, and the estimate."""
    arrays: Arrays = {"x": x.numpy()}
    y = codec.g_a(x)
    for letter, flow in FLOWS.items():
        out = encode_flow(codec, y, flow)
        arrays |= {f"{letter}_{name}": value.numpy() for name, value in out.items()}
        stored = golden.get(f"{letter}_coded_idx")
        if stored is not None and _index_error(out["coded_idx"].numpy(), stored) <= _INDEX_SLACK:
            out["coded_idx"] = torch.from_numpy(stored)
        arrays[f"{letter}_bitstream"] = _stream(out, z_tables, y_tables)
        if letter == "A":
            arrays |= {f"bpp_{part}": np.array(bits / x[0, 0].numel()) for part, bits in _bits(codec, out).items()}
    return arrays


def _generate(profile: Profile, codec_weights: GoldenTensors, y_hats: dict[str, Tensor], parts: int) -> Arrays:
    """g_s, UNet and picture decoder over the flows as one batch, each part built, used and freed."""
    arrays: Arrays = {}

    def keep(name: str, batch: Tensor) -> None:
        arrays.update({f"{letter}_{name}": row[None].numpy() for letter, row in zip(y_hats, batch, strict=True)})

    with torch.device("meta"):
        g_s = Synthesis(profile)
    load_codec(g_s, codec_weights, "g_s.")
    latent, residual = g_s(torch.cat(list(y_hats.values())))
    keep("lT", latent)
    keep("res", residual)
    del g_s
    if parts > 2:
        with torch.device("meta"):
            unet = UNet(profile.unet, profile.unet_channels, profile.residual_channels)
        trained = GoldenTensors("unet_ckpt", keys.trained_unet_keys(profile))
        load_unet(unet, GoldenTensors("sd_unet", keys.sd_turbo_keys(profile)), trained)
        features = unet(latent)
        keep("unet", features)
        del unet
        gc.collect()
        keep("l0_groupmean4", channel_averages(features + residual))
    if parts > 3:
        with torch.device("meta"):
            vae = PictureDecoder(profile.vae, profile.residual_channels)
        load_vae(vae, GoldenTensors("half", keys.half_decoder_keys(profile), "decoder."))
        picture = torch.cat([vae(one[None]) for one in features + residual])
        keep("image_preclamp", picture)
        keep("image", picture.clamp(-1, 1))
        for letter in y_hats:
            arrays[f"{letter}_image_clamped_sub4_f16"] = arrays[f"{letter}_image"][0, :, ::4, ::4]
    return arrays


def compare(
    golden: Mapping[str, NDArray[Any]],
    found: Arrays,
    meta: Mapping[str, Any],
    parts: int,
    report: Comparisons | None = None,
    prefix: str = "",
) -> Comparisons:
    """Compare every array of the golden file with ours in ``report``. An unknown array is a failure."""
    report = report or Comparisons()
    margins = meta.get("margins", {})
    for stored, wanted in golden.items():
        name = stored.removesuffix("__sub")
        letter, _, what = name.partition("_") if "_" in name else ("", "", name)
        if next((at for start, at in _AFTER_CODEC.items() if what.startswith(start)), 0) >= parts:
            continue
        if name not in found:
            report.add(f"{prefix}{stored} (unknown)", float("inf"), 0)
            continue
        ours = found[name]
        if stored != name:
            ours = ours.reshape(-1)[:: meta["tensors"][name]["stride"]]
        if what != "bitstream":
            ours = ours.reshape(wanted.shape) if ours.size == wanted.size else ours
        known = [value for value in margins.get(letter, {}).values() if value is not None]
        required = min(known, default=1.0) >= SAFE_MARGIN
        if ours.shape != wanted.shape:
            report.add(f"{prefix}{stored} (shape)", float("inf"), 0, required)
        elif what == "coded_idx":
            report.add(f"{prefix}{stored}", _index_error(ours, wanted), _INDEX_SLACK, required)
        elif what in _EXACT:
            report.add(f"{prefix}{stored}", float((ours != wanted).sum()), 0, required)
        else:
            error = np.abs(ours.astype(np.float64) - wanted.astype(np.float64)).max()
            report.add(f"{prefix}{stored}", float(error), _TOLERANCES.get(what, _TOLERANCE), required)
    for part, bpp in (meta.get("bpp_estimate_inference") or {}).items():
        report.add(f"{prefix}bpp estimate, {part}", abs(float(found[f"bpp_{part}"]) - bpp), _TOLERANCE)
    return report


def _index_error(ours: NDArray[Any], wanted: NDArray[Any]) -> float:
    """At how many places scale indexes are one step off; infinite if further off, or other places are skipped."""
    if ours.shape != wanted.shape:
        return float("inf")
    apart = np.abs(ours.astype(int) - wanted.astype(int))
    same_places = np.array_equal(ours < 0, wanted < 0)
    return float((apart > 0).sum()) if same_places and apart.max() <= 1 else float("inf")


def _stream(out: Mapping[str, Tensor], z_tables: list[tables.Table], y_tables: list[tables.Table]) -> NDArray[np.uint8]:
    z = out["z_sym"][0].int()
    indexes = torch.arange(z.shape[0]).repeat_interleave(z[0].numel())
    arrays = [(z_tables, indexes.tolist(), z.flatten().tolist())]
    for index, values in zip(out["coded_idx"].chunk(4), out["coded_sym"].chunk(4), strict=True):
        arrays.append((y_tables, index.tolist(), values.tolist()))
    return np.frombuffer(range_coder.encode(arrays), np.uint8)


def _bits(codec: Codec, out: Mapping[str, Tensor]) -> dict[str, float]:
    """The official estimate: every symbol at its exact scale, floored, none skipped."""
    scales, distance = out["scales"].clamp_min(SCALE_MIN), out["y_sym"].abs()
    likelihood = tables.normal((0.5 - distance) / scales) - tables.normal((-0.5 - distance) / scales)
    y = float(-likelihood.clamp_min(LIKELIHOOD_MIN).log2().sum())
    z = float(codec._z_bits(out["z_sym"] + codec.medians(), 0))
    return {"total": y + z, "y": y, "z": z}


def _packed(kind: str, made: list[tables.Table], suffix: str = "") -> Arrays:
    sizes, offsets, flat = tables.pack(made)
    return {f"{kind}_cdf_length{suffix}": sizes, f"{kind}_offset{suffix}": offsets, f"{kind}_cdf_flat{suffix}": flat}


def compare_tables(report: Comparisons, stored: Mapping[str, NDArray[Any]], found: Arrays, profile: Profile) -> None:
    """The 16-bit tables of y, and those of z for this profile's golden weights, entry by entry."""
    suffix = f"_{profile.name.upper()}"
    for kind, end in (("y", ""), ("z", suffix)):
        lengths = stored.get(f"{kind}_cdf_length{end}")
        if lengths is None:
            continue
        rows = stored.get(f"{kind}_cdf{end}")
        flat = (
            stored[f"{kind}_cdf_flat{end}"]
            if rows is None
            else np.concatenate([row[:length] for row, length in zip(rows, lengths, strict=True)])
        )
        parts = ((f"{kind}_cdf_length{end}", lengths), (f"{kind}_offset{end}", stored[f"{kind}_offset{end}"]))
        for name, wanted in (*parts, (f"{kind}_cdf_flat{end}", flat)):
            same_shape = found[name].shape == wanted.shape
            report.add(name, float((found[name] != wanted).sum()) if same_shape else float("inf"), 0)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="aeic bench goldens", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--profile", choices=("se", "me"), default="se")
    parser.add_argument("--parts", choices=PARTS, default="vae", help="stop after this part (codec needs 200 MB)")
    parser.add_argument("--paths", default="torch,onnx", help="torch, or torch,onnx")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's own choice")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    profile, upper = profiles.profile(options.profile), options.profile.upper()
    start = time.perf_counter()
    golden = _read(options.folder / f"golden_{upper}.npz")
    meta_path = options.folder / "golden_meta.json"
    try:
        meta = json.loads(meta_path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{meta_path} cannot be read ({error}): give the folder of the golden vectors") from None
    meta = meta.get(upper, meta)
    parts = PARTS.index(options.parts) + 1
    by_path = compute(profile, meta, parts, golden, options.paths.split(","))
    found = by_path["torch"]
    report = compare(golden, found, meta, parts)
    if "onnx" in by_path:
        compare(golden, by_path["onnx"], meta, 1, report, "onnx ")
    if (options.folder / "golden_entropy_tables.npz").exists():
        compare_tables(report, _read(options.folder / "golden_entropy_tables.npz"), found, profile)
    seconds = round(time.perf_counter() - start, 1)
    summary = {
        "profile": profile.name,
        "ok": report.ok,
        "compared": len(report.rows),
        "parts": PARTS[:parts],
        "seconds": seconds,
        "arrays": report.rows,
    }
    print(json.dumps(summary).replace("Infinity", '"inf"'))
    return 0 if report.ok else 1


def _read(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): give the folder of the golden vectors") from None


if __name__ == "__main__":
    raise SystemExit(main())
