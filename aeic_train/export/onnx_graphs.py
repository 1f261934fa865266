"""Writes a trained model as the float ONNX graphs of a bundle. aeic_nets.integer writes the integer entropy graphs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from aeic.profiles import LATENT_STRIDE, SCALE_COUNT, SCALE_MAX, SCALE_MIN, SKIP_SCALE
from aeic_nets.codec import Analysis, Codec
from aeic_nets.fast_analysis import HalfAnalysis, fast_analysis
from aeic_nets.network import AEIC
from aeic_nets.onnx_export import write_graph
from aeic_train.export.tables import hyper_medians

LARGEST_SYNTHESIS = 100_000_000
"""Decoders with more parameters get no ``synthesis.onnx`` and run in torch from ``weights.safetensors``. ONNX Runtime
keeps the graph in float32 and needs twice its memory while loading, and the file format is limited to 2 GiB."""


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


def write_graphs(model: AEIC, folder: Path) -> None:
    """Write the ONNX graphs that only one side runs, in float, with dynamic batch and sides."""
    codec, profile = model.codec, model.profile
    write_encoder_graphs(codec, folder)
    if sum(p.numel() for part in (codec.g_s, model.unet, model.vae) for p in part.parameters()) <= LARGEST_SYNTHESIS:
        latent = torch.zeros(2, profile.latent_channels, 128 // LATENT_STRIDE, 192 // LATENT_STRIDE)
        write_graph(SynthesisGraph(model), latent, folder / "synthesis.onnx", "y_hat", ["image"], half=True)


def write_encoder_graphs(codec: Codec, folder: Path) -> None:
    """Write analysis.onnx (rewritten for speed by aeic_nets.fast_analysis), hyper_analysis.onnx and, for the published
    sizes, analysis_half.onnx for GPUs, which takes bytes."""
    m, picture = codec.profile.latent_channels, torch.zeros(2, 3, 128, 192)
    write_graph(fast_analysis(codec.g_a), picture, folder / "analysis.onnx", "image", ["y"])
    if codec.profile.analysis_depth == 1:  # the edge's tiles rely on the receptive field of one StarBlock a stage
        write_stages(codec.g_a, folder)
    if codec.profile.rates == 1:
        write_graph(HalfAnalysis(codec.g_a), picture, folder / "analysis_half.onnx", "image", ["y"])
        take_bytes(folder / "analysis_half.onnx")
    write_graph(codec.h_a, torch.zeros(2, m, 8, 12), folder / "hyper_analysis.onnx", "y", ["z"])


def take_bytes(path: Path) -> None:
    """Change the input of the analysis in the file ``path`` from (n, 3, H, W) float32 to ``pixels`` (n, H, W, 3) uint8.

    The GPU then converts the picture, with the arithmetic of :func:`aeic.pixels.to_tensor`. For a picture of 1920x1088,
    a CPU takes 16 ms or more for that.
    """
    model = onnx.load(path)
    graph = model.graph
    image = graph.input[0].name
    batch, _, height, width = (side.dim_param or side.dim_value for side in graph.input[0].type.tensor_type.shape.dim)
    steps = [
        helper.make_node("Cast", ["pixels"], ["pixels_float"], name="pixels_float", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels_float"], ["pixels_first"], name="pixels_first", perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["pixels_first", "pixels_scale"], ["pixels_scaled"], name="pixels_scaled"),
        helper.make_node("Sub", ["pixels_scaled", "pixels_one"], [image], name="pixels_centred"),
    ]
    numbers = {"pixels_scale": np.float32(1 / 127.5), "pixels_one": np.float32(1)}
    graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in numbers.items())
    nodes = [*steps, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch, height, width, 3]))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_stages(g_a: Analysis, folder: Path) -> None:
    """Write analysis_0.onnx to analysis_2.onnx, the parts of analysis.onnx for large pictures: stages 0 and 1, 2, 3 and
    4."""
    layers, x = fast_analysis(g_a), torch.zeros(2, 3, 128, 192)
    ends = (0, 4, 6, len(layers))
    for number, (begin, end) in enumerate(pairwise(ends)):
        part = layers[begin:end]
        write_graph(part, x, folder / f"analysis_{number}.onnx", "features", ["y"])
        with torch.inference_mode():
            x = part(x)


def write_float_entropy(codec: Codec, folder: Path) -> None:
    """Write the entropy graphs in float32, for comparison only. Two machines may compute them differently."""
    m, n = codec.profile.latent_channels, codec.profile.hyper_channels
    symbols = torch.zeros(2, n, 2, 3, dtype=torch.int32)
    write_graph(HyperSynthesisGraph(codec), symbols, folder / "hyper_synthesis.onnx", "z_symbols", ["base"])
    for i in range(4):
        graph, base = ContextGraph(codec, i), torch.zeros(2, m, 4, 6)
        write_graph(graph, base, folder / f"context_{i}.onnx", "base", ["means", "indexes"])
