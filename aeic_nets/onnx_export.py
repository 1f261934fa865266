"""Exports a torch module to an ONNX file with dynamic batch and sides, and optionally weights stored in float16."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

OPSET = 20
"""The opset is pinned because the CUDA provider supports new ones late."""
_WORTH_HALVING = 256  # elements


def write_graph(
    module: nn.Module, example: Tensor, path: Path, input_name: str, outputs: list[str], half: bool = False
) -> None:
    """Export ``module`` with one input (N, C, H, W), of which all but C are dynamic.

    ``half`` stores the weights as float16 behind Cast nodes, folded on loading: the arithmetic is in float32.
    """
    axes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[input_name],
            output_names=outputs,
            dynamic_shapes=(axes,),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]
    for node in model.graph.node:  # the exporter records source paths and stack traces, which are not published
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    if half:
        _store_half(model.graph)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _store_half(graph: onnx.GraphProto) -> None:
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < _WORTH_HALVING:
            continue
        array, name = numpy_helper.to_array(tensor), tensor.name
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
