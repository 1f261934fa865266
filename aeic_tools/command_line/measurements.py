"""``aeic bench`` and ``aeic simulate``: programs that measure or predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from aeic_tools.command_line.options import PASS_ON, Model, Threads, finish, run_module
from aeic_tools.files import UsageError

bench_app = typer.Typer(
    help="Run a measurement. Each prints a table and, last, one line of JSON.", no_args_is_help=True
)


@bench_app.command()
def speed(
    pictures: Annotated[Path, typer.Argument(help="A picture or a folder of them.")] = Path("examples"),
    reps: Annotated[int, typer.Option("-n", "--reps", min=1, help="Timed repetitions, after one warm-up.")] = 3,
    model: Model = None,
    threads: Threads = 0,
    sizes: Annotated[
        str, typer.Option(metavar="WxH,...", help="Instead, pictures of these sizes: cost per pixel and peak memory.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON only.")] = False,
) -> None:
    """Encode and decode times of single pictures."""
    from aeic_tools.speed import by_size, single

    if sizes:
        paths = single.pictures_in(pictures)
        finish(by_size.run(paths, sizes, reps=reps, bundle=model, threads=threads, table=not as_json))
        return
    finish(single.run(pictures, reps=reps, bundle=model, threads=threads, table=not as_json))


MEASUREMENTS = {
    "rd": ("aeic_train.evaluation.rd", "train", "Rate, distortion and perception, compared with other codecs."),
    "curves": (
        "aeic_train.studies.curves",
        "train",
        "Results files, our own and published ones: one plot, and BD-rates against any anchor.",
    ),
    "artefacts": (
        "aeic_train.studies.artefacts",
        "train",
        "What the network adds to flat pictures, ramps, text and noise.",
    ),
    "ablation": ("aeic_train.studies.ablation", "train", "Short trainings that differ in one setting each."),
    "evolution": ("aeic_train.studies.evolution", "train", "Rate and picture over a training, from its snapshots."),
    "milestones": ("aeic_train.studies.milestones", "train", "Quality at equal bits over the hours of a training."),
    "complexity": ("aeic_nets.official.complexity", "train", "Parameters and multiply-adds, compared with the paper."),
    "speed-table": ("aeic_tools.speed.table", "edge-cpu", "Encode and decode times beside the published ones."),
    "costs": ("aeic_train.studies.costs", "train", "Times and multiply-adds, compared with other codecs."),
    "goldens": ("aeic_nets.official.goldens_check", "train", "Comparison with golden vectors of the research code."),
    "decode": ("benchmarks.cloud.decode", "dev", "Decoding with a full-size profile, compared with plain PyTorch."),
    "desync": (
        "benchmarks.entropy.desync",
        "dev",
        "Frames lost to arithmetic, with integer and float32 entropy models.",
    ),
    "exact": (
        "benchmarks.entropy.exact",
        "dev",
        "Whether all executors of the entropy model agree; time saved by batches.",
    ),
    "encode": ("benchmarks.edge.encode", "dev", "Encoding with a full-size profile, compared with plain PyTorch."),
    "entropy": (
        "benchmarks.entropy.integer_and_float",
        "train",
        "The integer entropy model: speed and bits, compared with float32.",
    ),
    "rans": ("benchmarks.entropy.rans", "train", "The entropy coder: speed and overhead, compared with CompressAI's."),
    "edge": ("benchmarks.edge.whole_path", "dev", "The whole edge path: frames per second, memory, bytes sent."),
    "edge-overload": ("benchmarks.edge.overload", "dev", "How fast the edge answers under ten times its capacity."),
    "serve": ("benchmarks.cloud.serve", "bench", "The cloud under full load, compared with LitServe and Ray Serve."),
    "fleet": (
        "benchmarks.fleet.report",
        "dev",
        "Several workers: claims, ingest, scaling, and the simulator's prediction.",
    ),
    "store": (
        "benchmarks.cloud.store",
        "dev",
        "A store with a million frames: every route, and retention against ingest.",
    ),
}
"""Name of a measurement: its module, the extra that it needs, its help text."""


simulate_app = typer.Typer(
    help="Predict what cannot be measured on one machine. The last line is JSON.", no_args_is_help=True
)
SIMULATIONS = {
    "fleet": ("benchmarks.fleet.simulator", "dev", "GPUs, queue age, database load and cost of 10^3 to 10^6 cameras."),
}


def _add_measurement(
    name: str, module: str, extra: str, text: str, group: typer.Typer = bench_app, verb: str = "bench"
) -> None:
    @group.command(name, help=f"{text} (extra {extra})", context_settings=PASS_ON, add_help_option=False)
    def run(context: typer.Context) -> None:
        if module.startswith("benchmarks."):
            root = Path(__file__).resolve().parents[2]
            if not (root / "benchmarks").is_dir():
                raise UsageError(
                    f"aeic {verb} {name} needs a checkout of the repository, and this is an installed package"
                )
            sys.path.insert(0, str(root))
        run_module(module, extra, context.args)


for _name, _measurement in MEASUREMENTS.items():
    _add_measurement(_name, *_measurement)
for _name, _measurement in SIMULATIONS.items():
    _add_measurement(_name, *_measurement, simulate_app, "simulate")
