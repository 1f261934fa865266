"""Adds the float16 analysis for GPUs, analysis_half.onnx, to a bundle. It is made from analysis.onnx.

    python -m aeic_train.export.float16 models/aeic-se-nano --out models/aeic-se-nano-gpu

Inputs and outputs stay float32, so that nothing else changes. Norms stay float32 because float16 cannot hold their
sums. The analysis does not define the bitstream, so the fingerprint stays; the digest changes.
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

NAME = "analysis_half.onnx"


def add_half(source: Path, out: Path) -> Bundle:
    """Copy the bundle to the new folder ``out`` and add the float16 graph."""
    bundle = Bundle.load(source)
    out.mkdir(parents=True)
    for name in ("bundle.json", *bundle.manifest["files"]):
        shutil.copyfile(source / name, out / name)
    model = convert_float_to_float16(
        onnx.load(out / "analysis.onnx"),
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, "LayerNormalization"],
        node_block_list=_deviations(onnx.load(out / "analysis.onnx").graph),
    )
    OnnxModel(model).topological_sort()  # the conversion puts its casts last
    onnx.checker.check_model(model)
    (out / NAME).write_bytes(model.SerializeToString(deterministic=True))
    manifest = json.loads((out / "bundle.json").read_text())
    manifest["files"][NAME] = hashlib.sha256((out / NAME).read_bytes()).hexdigest()
    (out / "bundle.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return Bundle.load(out)


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
    print(json.dumps({"digest": add_half(given.bundle, given.out).digest.hex(), "file": NAME}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
