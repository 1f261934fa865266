"""A bundle of any profile without its weights: each tensor is drawn from a generator that its name seeds.

    aeic export --profile se --random --out aeic-se-onnx

The graphs have the sizes and the cost of the real ones, but their pictures mean nothing. Use the bundle to measure, or
to look at AEIC-SE as ONNX (docs/onnx.md). It encodes and entropy-decodes; there is no picture decoder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx
import torch

from aeic import profiles
from aeic.bundle import Bundle
from aeic.profiles import Profile
from aeic_nets.codec import Codec
from aeic_nets.integer.calibrate import calibrate
from aeic_nets.integer.export import export_entropy, write_gpu_entropy
from aeic_nets.official import keys
from aeic_nets.official.golden_weights import GoldenTensors, golden_picture
from aeic_nets.official.weights import load_codec
from aeic_train.export.bundle import write_manifest
from aeic_train.export.onnx_graphs import write_encoder_graphs
from aeic_train.export.tables import hyper_medians, write_tables

CALIBRATION = ((256, 384, 0.0), (256, 384, 3.0))
"""Height, width and phase of the generated pictures on which the entropy model is calibrated."""


@torch.no_grad()
def export_random(profile: Profile, out: Path, name: str) -> Bundle:
    """Write the bundle into the folder ``out``, which must not exist. Same profile, same weights.

    ``onnx.checker`` has passed every graph. Names of constants and nodes in the entropy graphs begin with their layer.
    """
    with torch.device("meta"):
        codec = Codec(profile)
    del codec.g_s
    load_codec(codec, GoldenTensors("codec", keys.codec_keys(profile)))
    codec.eval().requires_grad_(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        write_tables(codec, folder / "tables.npz")
        write_encoder_graphs(codec, folder)
        latents = [codec.g_a(golden_picture(*picture)) for picture in CALIBRATION]
        sites = calibrate(codec, latents)
        integers = export_entropy(codec, sites, folder, hyper_medians(codec), readable=True)
        integers.save(folder / "integer.npz")
        write_gpu_entropy(integers, folder)
        (folder / "graphs.md").write_text(describe(folder))
        card: dict[str, object] = {"source": "random weights, made from the names of the tensors"}
        write_manifest(folder, profile, name, [{"name": "r0", "bpp": 1.0}] * profile.rates, 0, card)
        folder.rename(out)
    return Bundle.load(out)


def describe(folder: Path) -> str:
    """A table of the graphs in ``folder``: opset, nodes, and inputs and outputs with their axes. Checks every graph."""
    lines = ["| graph | opset | nodes | inputs | outputs |", "|---|---|---|---|---|"]
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        onnx.checker.check_model(model)
        opsets = ", ".join(f"{one.domain or 'ai.onnx'} {one.version}" for one in model.opset_import)
        inputs, outputs = (", ".join(map(_value, values)) for values in (model.graph.input, model.graph.output))
        lines.append(f"| {path.name} | {opsets} | {len(model.graph.node)} | {inputs} | {outputs} |")
    return "\n".join(lines) + "\n"


def _value(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    axes = ", ".join(axis.dim_param or str(axis.dim_value) for axis in kind.shape.dim)
    return f"{value.name} ({axes}) {onnx.TensorProto.DataType.Name(kind.elem_type).lower()}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="aeic export --random", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--random", action="store_true", help="weights drawn at random")
    parser.add_argument("--profile", default="se", choices=sorted(profiles.PROFILES))
    parser.add_argument("--name", help="default: aeic-PROFILE-random")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    options = parser.parse_args(argv)
    if options.out.exists():
        parser.error(f"{options.out} exists: give a new folder")
    name = options.name or f"aeic-{options.profile}-random"
    made = export_random(profiles.profile(options.profile), options.out, name)
    print(f"{options.out}: random weights, fingerprint {made.fingerprint}")
    print((options.out / "graphs.md").read_text())
