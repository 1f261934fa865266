"""Everything to be learnt on a machine with a GPU, in one command of at most nine minutes.

    python -m benchmarks.gpu.session [--bundle DIR] [--out report.json]
    python -m benchmarks.gpu.session --device cpu --short        # in CI: the same code on a CPU, about a minute

It needs this checkout, the packages of ``aeic[cloud]`` and no network. Step 3 uses the GPU only where
``onnxruntime-gpu`` is installed in place of ``onnxruntime``. ``report.json`` is written after every step, so
that an interrupted session loses one step at most. A step that fails is recorded with its error, and the others go on.

1. machine: versions, cards, and the ceilings of products and of memory.
2. entropy: the exact entropy model on the device against the CPU's graphs, by size, batch, TF32 and float16 factors;
   with torch's and with Triton's kernels, as CUDA graphs and without.
3. edge: the encoder's entropy model in ONNX Runtime, with arrays, with buffers on the device, and as a CUDA graph.
4. decoder: times, peak memory beside the plan, and the distance from float32; eager, as CUDA graphs, and compiled; the
   pictures fetched to ordinary memory, to page-locked memory, and beside the next batch.
5. service: frames through the cloud with entropy decoding on the device, while its decoder process is killed.

The entropy model and the service use the shipped bundle, or ``--bundle``: ``aeic export --profile se --random`` makes
one of the full size. The decoder's weights are drawn at random; its times do not depend on them. Exit status 1 if a
step failed or any number differed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import math
import os
import platform
import signal
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file

import aeic
from aeic import profiles
from aeic.bundle import Bundle
from aeic.entropy_model import EntropyModel
from aeic.latent_codec import LatentCodec
from aeic.passes import PASS_COUNT
from aeic.profiles import LATENT_STRIDE
from aeic.quantise import hyper_size
from aeic.runtime import cuda
from aeic.runtime.driver import driver_version
from aeic_nets.integer.model import IntegerModel
from aeic_nets.integer.torch_ops import Factors, TorchEntropyModel, TorchOps
from aeic_nets.runtime import memory_plan
from aeic_nets.runtime.cuda_device import CudaDevice
from aeic_nets.runtime.cuda_graphs import Graphed
from aeic_nets.runtime.device_entropy import Kernels
from aeic_nets.runtime.pinned_output import plain
from aeic_nets.runtime.torch_backend import TorchGenerator
from aeic_nets.synthesis import PictureGenerator
from cloud_decoder.service import Cloud
from cloud_decoder.settings import Settings
from edge_encoder.encoding.execution_provider import open_exact
from edge_encoder.encoding.gpu_entropy import GRAPH, OUTPUTS
from edge_encoder.encoding.resident_graph import Device, GraphGone, ResidentGraph

SESSION_SECONDS = 540.0
SIZES = ((768, 512), (1920, 1088))
SHORT_SIZES = ((192, 128),)


@dataclass
class Session:
    """The report and the time that is left."""

    device: torch.device
    short: bool
    out: Path
    bundle: Bundle
    ends: float
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds until the session should be over."""
        return self.ends - time.monotonic()

    @property
    def on_card(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Widths and heights of pictures."""
        return SHORT_SIZES if self.short else SIZES

    @property
    def batches(self) -> tuple[int, ...]:
        """Pictures at once."""
        return (1, 2) if self.short else (1, 4, 8)

    def save(self) -> None:
        """Write the report, whole or not at all."""
        part = self.out.with_name(self.out.name + ".part")
        part.write_text(json.dumps(self.report, indent=1) + "\n")
        part.replace(self.out)

    def step(self, name: str, work: Callable[[Session], dict[str, Any]]) -> None:
        """Run one step and save the report. No time left, or an error, is its result."""
        started = time.monotonic()
        if self.left < 10:
            result: dict[str, Any] = {"ok": True, "skipped": "no time was left"}
        else:
            try:
                result = work(self)
            except Exception as error:
                traceback.print_exc()
                result = self.report["steps"].get(name, {})  # what the step has saved
                result |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        result["seconds"] = round(time.monotonic() - started, 1)
        self.report["steps"][name] = result
        self.save()
        outcome = "FAILED" if not result["ok"] else "skipped" if "skipped" in result else "ok"
        print(f"{name:10} {outcome:7} {result['seconds']:6.1f} s  {result.get('skipped', '')}".rstrip(), flush=True)

    def milliseconds(self, work: Callable[[], object], rounds: int = 5) -> float:
        """The median time, after two runs to warm up; the device is waited for."""
        times = []
        for number in range((1 if self.short else rounds) + 2):
            begin = time.perf_counter()
            work()
            self.wait()
            if number >= 2:
                times.append(1e3 * (time.perf_counter() - begin))
        return round(statistics.median(times), 2)

    def wait(self) -> None:
        """Wait for the device."""
        if self.on_card:
            torch.cuda.synchronize(self.device)


def machine(session: Session) -> dict[str, Any]:
    """Versions, cards and ceilings."""
    side = 512 if session.short else 8192
    found: dict[str, Any] = {"ok": True, "python": platform.python_version(), "torch": torch.__version__}
    found |= {"aeic": aeic.__version__, "system": platform.platform(), "cores": os.cpu_count(), "tera_per_second": {}}
    if session.on_card:
        free, total = torch.cuda.mem_get_info(session.device)
        capability = torch.cuda.get_device_capability(session.device)
        found["card"] = {"name": torch.cuda.get_device_name(session.device), "capability": capability}
        found["card"] |= {"free": free, "total": total, "cuda": torch.version.cuda, "driver": driver_version()}
    kinds = {"float32": (torch.float32, False), "bfloat16": (torch.bfloat16, False)}
    if session.on_card:
        kinds |= {"tf32": (torch.float32, True), "float16": (torch.float16, False)}
    for name, (dtype, tf32) in kinds.items():
        with tensor_floats(tf32):
            a = torch.ones(side, side, device=session.device, dtype=dtype)
            milliseconds = session.milliseconds(partial(torch.mm, a, a))
        found["tera_per_second"][name] = round(2 * side**3 / milliseconds / 1e9, 2)
    block = torch.ones(1 << (22 if session.short else 28), device=session.device)
    found["copy_gigabytes_per_second"] = round(8 * block.numel() / session.milliseconds(block.clone) / 1e6, 1)
    return found


@contextmanager
def tensor_floats(on: bool) -> Iterator[None]:
    """Products of float32 in TF32 or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def entropy(session: Session) -> dict[str, Any]:
    """The exact entropy model on the device, element by element against the CPU's graphs."""
    bundle = session.bundle
    path = bundle.auxiliary("integer.npz")
    if path is None:
        return {"ok": False, "error": f"bundle {bundle.name} has no integer.npz"}
    integers, exact = IntegerModel.load(path), EntropyModel(bundle)
    rows: list[dict[str, Any]] = []
    ways, skipped = entropy_ways(session, integers)
    found: dict[str, Any] = {"ok": True, "bundle": bundle.name, "triton": skipped or "measured", "rows": rows}
    session.report["steps"]["entropy"] = found  # an error in one way does not lose the rows of the others
    models = {way: way.model(integers, session.device) for way in ways}
    rng = np.random.default_rng(0)
    for width, height in session.sizes:
        size = height // LATENT_STRIDE, width // LATENT_STRIDE
        batch = max(session.batches)
        z = rng.integers(-9, 10, (batch, bundle.hyper_channels, *hyper_size(*size))).astype(np.int32)
        reach = rng.choice([0.5, 8, 4000], (batch, 1, 1, 1))
        base = (np.rint(rng.normal(size=(batch, bundle.channels, *size)) * reach * 256) / 256).astype(np.float32)
        wanted = [exact.hyper_synthesis(z, *size), *(x for i in range(PASS_COUNT) for x in exact.context(i, base))]
        for way, model in models.items():
            for count in session.batches:
                run = partial(all_calls, model, z[:count], base[:count])
                with tensor_floats(way.tf32):
                    milliseconds = session.milliseconds(run)
                    given = run()
                different = sum(int((one != other[:count]).sum()) for one, other in zip(given, wanted, strict=True))
                row = {"size": f"{width}x{height}", "batch": count, **asdict(way)}
                rows.append(row | {"different": different, "ms": milliseconds})
    return found | {"ok": not any(row["different"] for row in rows)}


@dataclass(frozen=True)
class EntropyWay:
    """How the entropy model is computed on the device."""

    kernels: Kernels = "torch"
    factors: Factors = "float32"
    tf32: bool = False
    graphs: bool = False
    """Recorded as CUDA graphs when a shape comes again, as in the service."""

    def model(self, integers: IntegerModel, device: torch.device) -> TorchEntropyModel:
        """The model computed in this way. ``ImportError`` without Triton, if it is asked for."""
        ops = TorchOps
        if self.kernels == "triton":
            from aeic_nets.integer.triton_ops import TritonOps

            ops = TritonOps
        if not self.graphs:
            return TorchEntropyModel(integers, device, self.factors, ops=ops)
        graphed = partial(Graphed, recorder=CudaDevice(device).recorder())
        return TorchEntropyModel(integers, device, self.factors, wrap=graphed, ops=ops)


def entropy_ways(session: Session, integers: IntegerModel) -> tuple[list[EntropyWay], str]:
    """The ways that work on the device, and why Triton's kernels are not among them."""
    if not session.on_card:
        return [EntropyWay()], "skipped: Triton's kernels need a GPU"
    ways = [EntropyWay(), EntropyWay(tf32=True), EntropyWay(factors="float16"), EntropyWay(graphs=True)]
    try:
        from aeic_nets.integer.triton_ops import TritonOps

        cells = TritonOps(integers, session.device).cells(torch.zeros(1, device=session.device))
        assert cells.tolist() == [0]
    except Exception as error:  # no Triton, or no C compiler, which it needs
        return ways, f"skipped: {type(error).__name__}: {error}"
    return [*ways, EntropyWay("triton"), EntropyWay("triton", "float16"), EntropyWay("triton", graphs=True)], ""


def all_calls(model: TorchEntropyModel, z: Any, base: Any) -> list[Any]:
    """h_s and the four contexts: all that decoding a frame computes."""
    results: list[Any] = [model.hyper_synthesis(z, *base.shape[2:])]
    for index in range(PASS_COUNT):
        results += model.context(index, base)
    return results


def edge(session: Session) -> dict[str, Any]:
    """The encoder's entropy model as the edge runs it, against the CPU's graph."""
    bundle, rows = session.bundle, []
    on_cuda = session.on_card and cuda.CUDA in onnxruntime.get_available_providers()
    device: Device = "cuda" if on_cuda else "cpu"

    def opened(graph: Path, capture: bool) -> onnxruntime.InferenceSession:
        return (
            open_exact(graph, 0, capture) if on_cuda else onnxruntime.InferenceSession(str(graph), providers=[cuda.CPU])
        )

    with tempfile.TemporaryDirectory() as scratch:
        graph = bundle.auxiliary(GRAPH)
        if graph is None:
            if importlib.util.find_spec("onnx") is None:
                reason = f"the bundle has no {GRAPH}, and the package onnx, which would make it, is not installed"
                return {"ok": True, "bundle": bundle.name, "skipped": reason}
            from aeic_nets.integer.export import write_gpu_entropy

            path = bundle.auxiliary("integer.npz")
            assert path is not None, "the step before has asked for it"
            write_gpu_entropy(IntegerModel.load(path), Path(scratch))
            graph = Path(scratch) / GRAPH
        exact, rng = EntropyModel(bundle), np.random.default_rng(3)
        resident = {
            f"captured {capture}": ResidentGraph(partial(opened, graph), OUTPUTS, device=device, capture=capture)
            for capture in ((False, True) if on_cuda else (False,))
        }
        array_session = opened(graph, False)
        for width, height in session.sizes:
            size = height // LATENT_STRIDE, width // LATENT_STRIDE
            y = (4 * rng.standard_normal((bundle.channels, *size))).astype(np.float32)
            z = rng.integers(-9, 10, (bundle.hyper_channels, *hyper_size(*size))).astype(np.int32)
            wanted, inputs = exact.quantise(y, z), {"y": y[None], "z_symbols": z[None]}
            ways: dict[str, Callable[[], list[Any]]] = {"arrays": partial(array_session.run, None, inputs)}
            ways |= {name: partial(bound_run, one, inputs) for name, one in resident.items()}
            for way, run in ways.items():
                milliseconds = session.milliseconds(run)
                different = sum(int((one[0] != other).sum()) for one, other in zip(run(), wanted, strict=True))
                rows.append({"size": f"{width}x{height}", "way": way, "different": different, "ms": milliseconds})
        captures = {name: one.captures for name, one in resident.items()}
    right = not any(row["different"] for row in rows)
    return {"ok": right, "bundle": bundle.name, "provider": device, "captures": captures, "rows": rows}


def bound_run(resident: ResidentGraph, inputs: dict[str, Any]) -> list[Any]:
    """One run; a new size is captured by the second."""
    try:
        return resident.run(inputs, resident.place(inputs))
    except GraphGone:  # its capture failed
        return resident.run(inputs, resident.place(inputs))


def random_decoder(profile: profiles.Profile, folder: Path, device: torch.device) -> Path:
    """The weights of g_s, UNet and picture decoder, drawn on the device, as a folder that TorchGenerator loads."""
    with torch.device("meta"):
        model = PictureGenerator(profile)
    torch.manual_seed(0)
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            deviation = 0.7 / math.sqrt(parameter[0].numel())
            value = deviation * torch.randn(parameter.shape, device=device)
        else:
            value = torch.full(parameter.shape, float(name.endswith("weight")), device=device)
        tensors[name] = value.half().cpu()
    save_file(tensors, folder / "weights.safetensors")
    (folder / "bundle.json").write_text(json.dumps({"profile": profile.name}))
    return folder


def decoder(session: Session) -> dict[str, Any]:
    """Times of the synthesis, its peak memory beside the plan, and its distance from float32."""
    profile = profiles.profile("nano" if session.short else "se")
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_decoder(profile, Path(scratch), session.device)
        generator = TorchGenerator(folder, str(session.device))
        rows = [row for way in decoder_ways(session, generator) for row in decoder_rows(session, generator, way)]
        failed = any("error" in row for row in rows if row["way"] != "compiled")  # the service compiles nothing
        found: dict[str, Any] = {"ok": not failed, "profile": profile.name, "rows": rows}
        session.report["steps"]["decoder"] = found  # what follows may need more memory than there is
        session.save()
        small = latents(profile, 1, 192, 128)
        half = generator(small)
        del generator
        full = TorchGenerator(folder, str(session.device), dtype=torch.float32)(small)
    psnr = 10 * math.log10(4 / max(float(np.mean((full - half) ** 2)), 1e-12))
    found["psnr"] = round(psnr, 1)
    return found


def decoder_ways(session: Session, generator: TorchGenerator) -> dict[str, Callable[[Any], Any]]:
    """How the synthesis is run, by name."""

    @torch.inference_mode()
    def eager(values: Any) -> Any:
        return generator._synthesise(torch.from_numpy(values).to(session.device))

    ways: dict[str, Callable[[Any], Any]] = {"eager": eager}
    if session.on_card:
        compiled = torch.compile(generator._synthesise, fullgraph=True, dynamic=False)

        @torch.inference_mode()
        def by_compiler(values: Any) -> Any:
            return compiled(torch.from_numpy(values).to(session.device))

        ways |= fetching_ways(generator) | {"compiled": by_compiler}
    return ways


def fetching_ways(generator: TorchGenerator) -> dict[str, Callable[[Any], Any]]:
    """How pictures reach the host: to page-locked memory, to ordinary memory, and four batches, overlapping or not."""

    def pageable(values: Any) -> Any:
        pinned, generator._fetch = generator._fetch, plain
        try:
            return generator.pictures(values)
        finally:
            generator._fetch = pinned

    def overlapped(values: Any) -> Any:
        before = generator.start(values, whole=True)
        for _ in range(3):
            now = generator.start(values, whole=True)
            before()
            before = now
        return before()

    def four(values: Any) -> Any:
        return [generator.pictures(values) for _ in range(4)][-1]

    return {"graph": generator.pictures, "graph pageable": pageable, "four": four, "four overlapped": overlapped}


def decoder_rows(session: Session, generator: TorchGenerator, way: str) -> Iterator[dict[str, Any]]:
    """One row for each size and batch, as long as there is time."""
    profile, run = generator._model.profile, decoder_ways(session, generator)[way]
    for width, height in session.sizes:
        for count in session.batches:
            if way.startswith("four") and ((width, height) != session.sizes[0] or count == max(session.batches)):
                continue  # they take four times as long
            row: dict[str, Any] = {"way": way, "size": f"{width}x{height}", "batch": count}
            if session.left < (240 if way == "compiled" else 120) and not session.short:  # compiling takes minutes
                yield row | {"skipped": "no time was left"}
                continue
            row["planned"] = memory_plan.activation_bytes(profile, count * width * height)
            values = latents(profile, count, width, height)
            if session.on_card:
                torch.cuda.reset_peak_memory_stats(session.device)
                held = torch.cuda.memory_allocated(session.device)
            try:
                row["ms"] = session.milliseconds(partial(run, values))
            except (MemoryError, torch.OutOfMemoryError) as error:
                yield row | {"skipped": str(error).splitlines()[0]}
                continue
            except Exception as error:  # a bare machine may have no C compiler, which Triton needs
                traceback.print_exc()
                yield row | {"error": f"{type(error).__name__}: {error}"}
                continue
            if session.on_card:
                row["peak"] = torch.cuda.max_memory_allocated(session.device) - held
            yield row


def latents(profile: profiles.Profile, count: int, width: int, height: int) -> Any:
    """y_hat of pictures of that size."""
    shape = (count, profile.latent_channels, height // LATENT_STRIDE, width // LATENT_STRIDE)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def service(session: Session) -> dict[str, Any]:
    """Frames through a cloud whose decoder process entropy-decodes too, and is killed on the way."""
    bundle, count = session.bundle, 12 if session.short else 200
    if not (bundle.has("synthesis.onnx") or bundle.has("weights.safetensors")):
        bundle = Bundle.load()
    codec, rng = LatentCodec(bundle), np.random.default_rng(2)
    width, height = session.sizes[0]
    shape = (bundle.channels, height // LATENT_STRIDE, width // LATENT_STRIDE)
    frames = [codec.encode(rng.standard_normal(shape).astype(np.float32), 0, width, height) for _ in range(count)]
    wanted = [codec.decode(frame).digest for frame in frames[:4]]

    async def decode(folder: Path) -> tuple[list[Any], float, int]:
        device = str(session.device) if session.on_card else "onnx"
        settings: dict[str, Any] = {
            "port": 0,
            "grpc_port": 0,
            "data_dir": folder,
            "bundle": bundle.path,
            "max_queue": count,
        }
        cloud = Cloud(Settings(**settings, device=device, entropy="device", entropy_check_frames=8))
        await cloud.start()
        try:
            backend, pool = cloud.backend, cloud.model_pool
            await backend.decode(frames[0], timeout=300)
            started = time.monotonic()
            calls = [asyncio.create_task(backend.decode(frame, timeout=300)) for frame in frames]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            generator: Any = pool.first()._generator  # here always in a process of its own
            victim = generator.pid
            os.kill(victim, signal.SIGKILL)
            decoded = await asyncio.gather(*calls)
            seconds = time.monotonic() - started
            mismatches = cloud.metrics.registry.get_sample_value("aeic_cloud_entropy_mismatches_total")
            return decoded, seconds, int(mismatches or 0)
        finally:
            await cloud.stop()

    with tempfile.TemporaryDirectory() as scratch:
        decoded, seconds, mismatches = asyncio.run(decode(Path(scratch)))
    same = [one.latents_digest for one in decoded[:4]] == wanted
    result = {"ok": same and mismatches == 0 and len(decoded) == count, "frames": count, "killed": 1}
    return result | {"mismatches": mismatches, "frames_per_second": round(count / seconds, 2), "bundle": bundle.name}


STEPS = {"machine": machine, "entropy": entropy, "edge": edge, "decoder": decoder, "service": service}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--short", action="store_true", help="small sizes and the small model, about a minute on a CPU")
    parser.add_argument("--bundle", type=Path, help="bundle of the entropy model; default: the shipped one")
    parser.add_argument("--seconds", type=float, default=SESSION_SECONDS, help="time for the whole session")
    parser.add_argument("--out", type=Path, default=Path("report.json"))
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU: `aeic doctor` says more, --device cpu --short tries the script")
    session = Session(
        device, options.short, options.out, Bundle.load(options.bundle), time.monotonic() + options.seconds
    )
    session.report = {"session": 1, "device": str(device), "short": options.short, "steps": {}}
    for name, work in STEPS.items():
        session.step(name, work)
    session.report["ok"] = all(step["ok"] for step in session.report["steps"].values())
    session.save()
    print(json.dumps({"bench": "gpu session", "ok": session.report["ok"], "report": str(options.out)}))
    return 0 if session.report["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
