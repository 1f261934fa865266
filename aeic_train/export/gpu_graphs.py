"""Adds the graphs for GPUs to a bundle: the analysis in float16, and the entropy model of the encoder.

    python -m aeic_train.export.gpu_graphs models/aeic-se-nano --out models/aeic-se-nano-gpu

``analysis_half.onnx`` is made from analysis.onnx. It takes bytes, and y stays float32. Norms stay float32 because
float16 cannot hold their sums. ``entropy_gpu.onnx`` is made from integer.npz, and gives what
entropy.onnx gives, bit for bit. Neither defines the bitstream, so the fingerprint stays; the digest changes by the
analysis.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from aeic.bundle import Bundle
from aeic_nets.integer.export import GPU_ENTROPY, write_gpu_entropy
from aeic_nets.integer.model import IntegerModel
from aeic_train.export.onnx_graphs import take_bytes

HALF = "analysis_half.onnx"


def add_gpu_graphs(source: Path, out: Path) -> Bundle:
    """Copy the bundle to the new folder ``out`` and add the graphs. That of the entropy model needs integer.npz."""
    bundle = Bundle.load(source)
    out.mkdir(parents=True)
    auxiliary = [name for name in bundle.manifest.get("auxiliary", {}) if bundle.auxiliary(name)]
    for name in ("bundle.json", *bundle.manifest["files"], *auxiliary):
        shutil.copyfile(source / name, out / name)
    _write_half(out)
    manifest = json.loads((out / "bundle.json").read_text())
    manifest["files"][HALF] = _digest(out / HALF)
    if "integer.npz" in auxiliary:
        write_gpu_entropy(IntegerModel.load(out / "integer.npz"), out)
        manifest["auxiliary"][GPU_ENTROPY] = _digest(out / GPU_ENTROPY)
    (out / "bundle.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return Bundle.load(out)


def _write_half(out: Path) -> None:
    model = convert_float_to_float16(
        onnx.load(out / "analysis.onnx"),
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, "LayerNormalization"],
        node_block_list=_deviations(onnx.load(out / "analysis.onnx").graph),
    )
    OnnxModel(model).topological_sort()  # the conversion puts its casts last
    onnx.checker.check_model(model)
    (out / HALF).write_bytes(model.SerializeToString(deterministic=True))
    take_bytes(out / HALF)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _deviations(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes from a square to its root: the norms, as aeic_nets.fast_analysis writes them."""
    names: list[str] = []
    squares: set[str] = set()
    for node in graph.node:  # in order: the node that makes a value precedes the nodes that take it
        is_square = node.op_type == "Mul" and node.input[0] == node.input[1]
        if is_square or (node.op_type in ("Conv", "Add", "Sqrt") and node.input[0] in squares):
            names.append(node.name)
            if node.op_type != "Sqrt":
                squares.update(node.output)
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    given = parser.parse_args(arguments)
    bundle = add_gpu_graphs(given.bundle, given.out)
    added = [HALF, *([GPU_ENTROPY] if bundle.auxiliary(GPU_ENTROPY) else [])]
    print(json.dumps({"digest": bundle.digest.hex(), "files": added}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
