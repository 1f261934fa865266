"""A codec whose analysis and entropy model run in ONNX Runtime, float32, behind the same interface: for comparisons."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from aeic.passes import PASS_COUNT
from aeic_nets.codec import Codec
from aeic_nets.fast_analysis import fast_analysis
from aeic_nets.onnx_export import write_graph


class OnnxPart(nn.Module):
    """A module by its ONNX graph: (N, C, H, W) float32 to one output."""

    def __init__(self, module: nn.Module, channels: int, side: int) -> None:
        """Exports ``module``, which takes ``channels``; ``side`` is one that it can take, for the example."""
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "part.onnx"
            write_graph(module, torch.zeros(2, channels, side, side + side // 2), path, "x", ["y"])
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        (y,) = self._session.run(None, {"x": x.contiguous().numpy()})
        return torch.from_numpy(y)


def run_by_onnx(codec: Codec) -> None:
    """Replaces g_a (in its rewritten form), h_a, h_s and the four context networks of ``codec`` by their graphs."""
    m, n = codec.profile.latent_channels, codec.profile.hyper_channels
    codec.g_a = OnnxPart(fast_analysis(codec.g_a), 3, 128)
    codec.h_a, codec.h_s = OnnxPart(codec.h_a, m, 8), OnnxPart(codec.h_s, n, 2)
    for i in range(PASS_COUNT):
        codec.adapter_in[i] = OnnxPart(nn.Sequential(codec.adapter_in[i], codec.g_c, codec.adapter_out[i]), m, 4)
        codec.adapter_out[i] = nn.Identity()
    codec.g_c = nn.Identity()
