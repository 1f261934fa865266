"""Reference, int8 lowering and float lowering agree to the bit, however they are run."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from aeic.passes import PASS_COUNT, pass_mask
from aeic.quantise import dequantise, quantise_residual
from aeic.tables import Rows, gaussian_rows
from aeic_nets.integer.export import context_graph, entropy_graph, hyper_synthesis_graph
from aeic_nets.integer.reference import Reference
from aeic_nets.integer.scale_index import symbol_limits
from tests.support.models.exact_models import MODELS, SMALL, bases, small_model

LEVELS = [
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
]
M, CZ = SMALL.latent_channels, SMALL.hyper_channels


@lru_cache(maxsize=8)
def graphs(kind: str, target: Any) -> dict[str, bytes]:
    model = small_model(0, MODELS[kind])
    made = {f"context_{i}": context_graph(model, i, target) for i in range(PASS_COUNT)}
    return made | {"hyper": hyper_synthesis_graph(model, target), "entropy": entropy_graph(model, target)}


def run(data: bytes, level: Any = LEVELS[-1], threads: int = 1, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads, options.log_severity_level = level, threads, 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(None, feeds)
    return outputs


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", bases())
def test_contexts_agree_with_the_reference(kind: str, target: str, name: str) -> None:
    base, reference = bases()[name], Reference(small_model(0, MODELS[kind]))
    for index in range(PASS_COUNT):
        means, indexes = run(graphs(kind, target)[f"context_{index}"], base=base)
        want_means, want_indexes = reference.context(index, base)
        np.testing.assert_array_equal(means, want_means)
        np.testing.assert_array_equal(indexes, want_indexes)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("spread", [0, 3, 60, 8000])
def test_hyper_synthesis_agrees_with_the_reference(kind: str, target: str, spread: int) -> None:
    z = np.random.default_rng(2).integers(-spread, spread + 1, (2, CZ, 2, 3)).astype(np.int32)
    (base,) = run(graphs(kind, target)["hyper"], z_symbols=z)
    np.testing.assert_array_equal(base, Reference(small_model(0, MODELS[kind])).hyper_synthesis(z))
    np.testing.assert_array_equal(base * 256, np.rint(base * 256))


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("threads", [1, 2])
def test_no_setting_of_the_runtime_changes_anything(target: str, level: Any, threads: int) -> None:
    y, z = _frame()
    found = run(graphs("8 bit", target)["entropy"], level, threads, y=y, z_symbols=z)
    for got, want in zip(found, _reference_frame()):
        np.testing.assert_array_equal(got, want)


def test_one_call_of_the_encoder_is_four_of_the_decoder() -> None:
    y, z = _frame()
    symbols, indexes, y_hat = run(graphs("8 bit", "cpu")["entropy"], y=y, z_symbols=z)
    rows = Rows(*gaussian_rows())
    (base,) = run(graphs("8 bit", "cpu")["hyper"], z_symbols=z)
    base = base[..., : y.shape[2], : y.shape[3]]
    for index in range(PASS_COUNT):
        mask = pass_mask(index, *y.shape[1:])
        means, found = run(graphs("8 bit", "cpu")[f"context_{index}"], base=base)
        q = quantise_residual(y, means, found, rows)
        np.testing.assert_array_equal(q[0][mask], symbols[0][mask])
        np.testing.assert_array_equal(found[0][mask], indexes[0][mask])
        base = np.where(mask, dequantise(q, means), base)
    np.testing.assert_array_equal(base, y_hat)
    assert not symbols[indexes < 0].any()
    assert (indexes < 0).any() and (indexes > 10).any(), "the example should have skipped and coded elements"


@lru_cache(maxsize=1)
def _frame() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    rng = np.random.default_rng(3)
    y = rng.normal(size=(1, M, 6, 10)) * rng.choice([1, 5, 400], (1, M, 1, 1), p=[0.7, 0.25, 0.05])
    return y.astype(np.float32), rng.integers(-5, 6, (1, CZ, 2, 3)).astype(np.int32)


@lru_cache(maxsize=1)
def _reference_frame() -> tuple[NDArray[Any], ...]:
    return Reference(small_model()).entropy(*_frame(), symbol_limits())
