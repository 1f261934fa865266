"""`aeic export --random`: every graph of a published profile, at a reduced width, from names alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from aeic import profiles
from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec
from aeic_nets.integer.export import write_graphs
from aeic_nets.integer.model import IntegerModel
from aeic_train.export import random_weights as command
from tests.support.models.official_model import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("random") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(profiles.PROFILES, "se", SMALL)
        command.main(["--profile", "se", "--random", "--out", str(out)])
    return out


def test_every_graph_is_there_and_documented(folder: Path) -> None:
    table = (folder / "graphs.md").read_text()
    for name in ("analysis.onnx", "analysis_half.onnx", "hyper_analysis.onnx", "entropy.onnx", "context_3.onnx"):
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
        assert "ai.onnx 20" in row
    assert "image (" in table and "y (" in table and "float16" not in table, "outputs stay float32"
    assert "pixels (" in table and "uint8" in table
    types = {tensor.data_type for tensor in onnx.load(folder / "analysis_half.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types


def test_names_in_the_entropy_graphs_begin_with_their_layer(folder: Path) -> None:
    graph = onnx.load(folder / "context_0.onnx").graph
    weights = [one.name for one in graph.initializer if len(one.dims) >= 2 and np.prod(one.dims) >= 64]
    assert weights and all("/" in name and name.rpartition("/")[0] for name in weights)
    named = {name.partition("/")[0] for name in weights}
    assert any(name.startswith("g_c.") for name in named) and any(name.startswith("adapter_in.") for name in named)


def test_names_change_no_number(folder: Path, tmp_path: Path) -> None:
    write_graphs(IntegerModel.load(folder / "integer.npz"), tmp_path)
    readable, plain = (onnx.load(where / "context_1.onnx").graph for where in (folder, tmp_path))
    assert [node.op_type for node in readable.node] == [node.op_type for node in plain.node]
    assert [one.raw_data for one in readable.initializer] == [one.raw_data for one in plain.initializer]


def test_the_bundle_encodes_and_decodes(folder: Path) -> None:
    bundle = Bundle.load(folder)
    codec = LatentCodec(bundle, threads=1)
    y = np.random.default_rng(0).standard_normal((bundle.channels, 4, 6)).astype(np.float32)
    assert codec.decode(codec.encode(y, 0, 192, 128)).symbols.shape == y.shape
    with pytest.raises(SystemExit):
        command.main(["--profile", "nano", "--random", "--out", str(folder)])
