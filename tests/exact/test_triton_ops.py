"""Triton's kernels give the reference's numbers in Triton's interpreter, and compile to the instructions they rely on.

What a GPU computes is not tested here: its instructions are taken at their word.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aeic.bundle import Bundle
from aeic_nets.integer.fake_quant import norm_floor
from aeic_nets.runtime.device_entropy import build
from tests.support.models.exact_models import small_model, write_exact_bundle
from tests.support.roots import ROOT

triton = pytest.importorskip("triton", reason="torch is a build without Triton")
Found = dict[str, dict[str, Any]]
Compiled = Callable[..., str]


@pytest.fixture(scope="module")
def found() -> Found:
    """What tests/exact/triton_worker.py prints."""
    command = [sys.executable, "-m", "tests.exact.triton_worker"]
    settings = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    parsed: Found = json.loads(done.stdout.splitlines()[-1])
    return parsed


@pytest.mark.slow
def test_every_number_is_that_of_the_reference(found: Found) -> None:
    cases = {"rounding", "norms", "too wide", "convolutions", "8 bits", "14 bits", "shipped"}
    assert found["cases"] == dict.fromkeys(cases, 0)


@pytest.mark.slow
def test_rounding_half_up_and_a_missing_limit_are_noticed(found: Found) -> None:
    assert found["faults"]["half up"] > 100 and found["faults"]["no clip"] > 100


@pytest.mark.slow
def test_the_cloud_starts_with_them_only_if_they_give_the_known_answers(found: Found) -> None:
    assert found["starts"]["right"][:2] == ["TritonOps", ""]
    operations, reason, *lines = found["starts"]["wrong"]
    assert operations == "TorchOps" and reason == ""
    assert "uses torch's kernels instead of Triton's: known answers" in lines[-1]


@pytest.mark.slow
def test_a_pass_has_an_eighth_of_the_kernels(found: Found) -> None:
    before, after = found["kernels"]["TorchOps"], found["kernels"]["TritonOps"]
    assert sum(before.values()) > 8 * sum(after.values())
    assert after["sums_kernel"] == after["mm"]  # every product is finished by one kernel


def test_without_a_gpu_the_cloud_uses_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from aeic_nets.integer.triton_ops import TritonOps

    with pytest.raises(ValueError, match="need a CUDA device"):
        TritonOps(small_model(), torch.device("cpu"))
    entropy = build(Bundle.load(write_exact_bundle(tmp_path, integers=True)), "cpu", threads=1, kernels="triton")
    assert entropy is not None and entropy.check((2, 2))
    assert "uses torch's kernels instead of Triton's: ValueError: Triton's kernels need a CUDA device" in caplog.text


# -- compiled, without a GPU -------------------------------------------------------------------------------------------

_POINTERS = {"x", "factor", "out", "sums", "steps", "bias", "weight", "table", "residual"}
_WHOLE = {"size", "height", "width", "stride", "limb_stride"}
_LIMBS = {"C": 48, "WEIGHTS": 2, "CODES": 2, "ROUND": True}
_KERNELS: dict[str, dict[str, Any]] = {
    "round_kernel": {"LIMBS": 1},
    "round_kernel to limbs": {"LIMBS": 2, "factor": None},
    "norm_kernel": {"FLOOR": norm_floor(48), "C": 48},
    "sums_kernel": {"table": None, **_LIMBS},
    "sums_kernel with GELU": {"residual": None, **_LIMBS},
    "depthwise_kernel": {"table": None, "ROWS": 3, "COLUMNS": 5, **_LIMBS},
    "cells_kernel": {"MOST": 256.0, "SWITCH": 16.0, "FINE": 512.0, "COARSE": 8.0},
}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiled:
    """PTX of a kernel with these constants, for a GPU of the Ada generation."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aeic_nets.integer import triton_ops

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def ptx(name: str, constants: dict[str, Any], **options: bool) -> str:
        kernel, constants = getattr(triton_ops, name), constants | {"BLOCK": 128}
        types = dict.fromkeys(_POINTERS, "*fp32") | dict.fromkeys(_WHOLE, "i32") | dict.fromkeys(constants, "constexpr")
        if name == "cells_kernel":
            types["out"] = "*i64"
        source = ASTSource(kernel, {one: types.get(one, "fp32") for one in kernel.arg_names}, constants)
        made = triton.compile(source, target=GPUTarget("cuda", 89, 32), options=options)
        text: str = made.asm["ptx"]
        return text

    return ptx


def inexact(ptx: str) -> set[str]:
    """The instructions in ``ptx`` that round in another way than IEEE 754's, or could be joined to one that does."""
    used = set(re.findall(r"^\s+(?:@\S+\s+)?([a-z]\w*\.[\w.]*f(?:32|64))\s", ptx, re.M))
    allowed = r"(add|sub|mul|div|sqrt)\.rn\.f(32|64)|(min|max|neg|abs)\.f32|cvt\.f64\.f32|cvt\.rn\.f32\.(f64|s32)"
    allowed += r"|cvt\.rzi\.s32\.f32|(mov|ld|st|shfl|selp|setp)\..*"  # towards zero: of whole or positive numbers
    return {one for one in used if not re.fullmatch(allowed, one)}


@pytest.mark.parametrize("case", _KERNELS)
def test_kernels_compile_to_exact_instructions(compiled: Compiled, case: str) -> None:
    ptx = compiled(case.split()[0], _KERNELS[case], enable_fp_fusion=False)
    assert inexact(ptx) == set()
    if case == "norm_kernel":
        assert "sqrt.rn.f64" in ptx and "div.rn.f64" in ptx
        assert f"0d{struct.pack('>d', norm_floor(48)).hex().upper()}" in ptx  # not rounded to float32


def test_a_fused_multiply_add_is_noticed(compiled: Compiled) -> None:
    ptx = compiled("sums_kernel", _KERNELS["sums_kernel"], enable_fp_fusion=True)
    assert "fma.rn.f32" in inexact(ptx)


def test_kernels_are_launched_without_fused_multiply_adds() -> None:
    from aeic_nets.integer.triton_ops import TritonOps

    ops, options = object.__new__(TritonOps), {}
    ops._device = torch.device("cpu")
    ops.launch({(3,): lambda *arguments, **given: options.update(given)}, [3])
    assert options["enable_fp_fusion"] is False
