"""``aeic``: what a person types. The options stand here; the work is done in the module each command names.

Exit codes: 0 ok, 1 anything else, 2 usage, 3 a picture that cannot be taken, 4 a damaged frame, 5 a model that is
missing, altered or another one. Heavy imports happen inside the commands: ``aeic --help`` needs none of them.
"""

from __future__ import annotations

import dataclasses
import json as json_module
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from aeic import __version__
from aeic.errors import AeicError
from aeic_tools import output
from aeic_tools.extras import needs
from aeic_tools.files import UsageError

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="aeic",
    help="Photographs in one or two kilobytes: encode at the edge, decode in the cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

In = Annotated[str, typer.Argument(metavar="IN", help="A file, a folder, or - for stdin.")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="A file, a folder, or - for stdout.")]
Model = Annotated[Path | None, typer.Option("-m", "--model", help="Folder of the bundle [env: AEIC_BUNDLE].")]
Threads = Annotated[int, typer.Option("-j", "--threads", min=0, help="CPU threads; 0 takes all.")]
Force = Annotated[bool, typer.Option("-f", "--force", help="Overwrite what is there.")]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON for each file.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]


@app.command()
def encode(
    source: In,
    target: Out,
    rate: Annotated[str | None, typer.Option("-r", "--rate", help="Rate point, by number or name.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=10, help="The best rate point that fits N bytes.")] = None,
    model: Model = None,
    threads: Threads = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A picture (JPEG, PNG, WebP) into a frame of one or two kilobytes."""
    from aeic_tools import codec_commands

    options = codec_commands.Options(model, threads, force, json, quiet)
    _finish(codec_commands.encode(source, target, rate, max_bytes, options))


@app.command()
def decode(
    source: In,
    target: Out,
    picture_format: Annotated[
        str | None, typer.Option("--format", help="png, webp or jpeg; by default the suffix of OUT, png for a pipe.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or onnx (no torch).")] = "auto",
    model: Model = None,
    threads: Threads = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A frame back into a picture."""
    from aeic_tools import codec_commands

    options = codec_commands.Options(model, threads, force, json, quiet)
    _finish(codec_commands.decode(source, target, picture_format, device, options))


@app.command()
def info(source: Annotated[str, typer.Argument(metavar="FILE")], model: Model = None, json: Json = False) -> None:
    """What a frame's header says. Needs no model."""
    from aeic_tools import codec_commands

    _finish(codec_commands.info(source, bundle=model, as_json=json))


@app.command()
def latents(
    source: Annotated[str, typer.Argument(metavar="FILE")],
    target: Annotated[str, typer.Argument(metavar="OUT.npz")],
    model: Model = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """The decoded latents as an npz, and a digest on stdout: two machines that print the same agree bit for bit.

    The digest is the SHA-256 of the npz's y_hat: little-endian float32, in C order, before the gain is undone. The
    synthesis takes y_hat times inverse_gains, channel by channel.
    """
    from aeic_tools import codec_commands

    _finish(codec_commands.latents(source, target, bundle=model, threads=threads, force=force))


@app.command(context_settings=PASS_ON, add_help_option=False)
def edge(context: typer.Context) -> None:
    """Run the edge service (edge-cpu). Settings: AEIC_EDGE_*, docs/reference/edge.md."""
    _run_module("edge_encoder", "edge-cpu", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def cloud(context: typer.Context) -> None:
    """Run the cloud service (cloud-cpu or cloud). Settings: AEIC_CLOUD_*, docs/reference/cloud.md."""
    _run_module("cloud_decoder", "cloud-cpu", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def worker(context: typer.Context) -> None:
    """Run one worker of a fleet (fleet): aeic cloud --role worker. docs/how-to/fleet.md."""
    _run_module("cloud_decoder", "cloud-cpu", ["--role", "worker", *context.args])


spool_app = typer.Typer(help="The edge's spool.", no_args_is_help=True)
app.add_typer(spool_app, name="spool")


@spool_app.command("check")
def spool_check(
    folder: Annotated[Path, typer.Argument(envvar="AEIC_EDGE_DATA_DIR", help="Folder of the spool.")],
) -> None:
    """Read an edge's spool without changing it, also while the edge runs; one line of JSON, exit code 4 for damage."""
    with needs("edge-cpu"):
        from edge_encoder.spool.check import check
    report = check(folder)
    typer.echo(json_module.dumps({"ok": report.ok, **dataclasses.asdict(report)}))
    if not report.ok:
        raise typer.Exit(4)


store_app = typer.Typer(help="The cloud's store: revisions of its tables.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@store_app.command()
def upgrade(
    url: Annotated[str, typer.Argument(envvar="AEIC_CLOUD_DATABASE_URL", help="SQLAlchemy URL of the store.")],
) -> None:
    """Bring an older store up to this program's revision (fleet); safe to repeat. docs/how-to/fleet.md."""
    with needs("fleet"):
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

        from cloud_decoder.store.migrate import upgrade as bring_up
    try:
        bring_up(make_url(url))
    except (ArgumentError, NoSuchModuleError):  # without the text: it may hold a password
        raise UsageError("that is no URL of a database: write postgresql+psycopg://USER:PASSWORD@HOST/NAME") from None
    except OperationalError as error:
        raise UsageError(f"the database cannot be reached ({error.orig}): check the address") from error


@store_app.command()
def requeue(
    url: Annotated[str, typer.Argument(envvar="AEIC_CLOUD_DATABASE_URL", help="SQLAlchemy URL of the store.")],
    tenant: Annotated[str | None, typer.Option(help="Only frames of this tenant.")] = None,
    id: Annotated[UUID | None, typer.Option(help="Only the frame of this id.")] = None,
) -> None:
    """Put failed frames back into the queue, after what made them fail is mended. Prints how many."""
    with needs("cloud-cpu"):
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError

        from cloud_decoder.store.store import Store
    try:
        address = make_url(url)
        if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
            raise UsageError("there is no such file: write sqlite:///PATH/store.db")  # do not create one
        store = Store(address)
    except (ArgumentError, NoSuchModuleError):  # without the text: it may hold a password
        raise UsageError("that is no URL of a database: write sqlite:///PATH/store.db") from None
    try:
        print(store.queue.requeue(store.clock(), tenant, id))
    finally:
        store.close()


@app.command(context_settings=PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a model (train). docs/training.md."""
    with needs("train"):
        from aeic_train.training.trainer import main as run
    _pass_on(run, context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def export(context: typer.Context) -> None:
    """Pack a checkpoint into a bundle (train)."""
    with needs("train"):
        from aeic_train.export.bundle import main as run
    _pass_on(run, context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def convert(context: typer.Context) -> None:
    """Make a bundle of the official AEIC files (train). docs/how-to/official.md."""
    with needs("train"):
        from aeic_train.export.from_official import main as run
    _pass_on(run, context.args)


@app.command("import-official", context_settings=PASS_ON, add_help_option=False)
def import_official(context: typer.Context) -> None:
    """A stream of the research code into an npz of its latents (train)."""
    with needs("train"):
        from aeic_nets.official.archive import main as run
    _pass_on(run, context.args)


bench_app = typer.Typer(help="Measure: each prints a table, and one line of JSON last.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


@bench_app.command()
def speed(
    pictures: Annotated[Path, typer.Argument(help="A picture or a folder of them.")] = Path("examples"),
    reps: Annotated[int, typer.Option("-n", "--reps", min=1, help="Timed repetitions, after one warm-up.")] = 3,
    model: Model = None,
    threads: Threads = 0,
) -> None:
    """Encode and decode times: a table, and one line of JSON last."""
    from aeic_tools import speed as bench

    _finish(bench.run(pictures, reps=reps, bundle=model, threads=threads))


MEASUREMENTS = {
    "rd": ("aeic_train.evaluation.rd", "train", "Rate, distortion and perception over a folder, beside other codecs."),
    "artefacts": (
        "aeic_train.studies.artefacts",
        "train",
        "What the network adds to flat pictures, ramps, text, noise.",
    ),
    "ablation": ("aeic_train.studies.ablation", "train", "The same short training in arms that differ in one thing."),
    "complexity": ("aeic_nets.official.complexity", "train", "Parameters and MACs, beside the published table."),
    "costs": ("aeic_train.studies.costs", "train", "Encode and decode times and multiply-adds beside other codecs."),
    "goldens": ("aeic_nets.official.goldens_check", "train", "Golden vectors of the published networks."),
    "decode": ("benchmarks.decode", "dev", "Decoding with a full-size profile, beside plain PyTorch."),
    "desync": ("benchmarks.desync", "dev", "Frames lost to arithmetic: integer and float32 entropy models."),
    "exact": ("benchmarks.exact", "dev", "Equality of every executor of the entropy model; frames decoded together."),
    "encode": ("benchmarks.encode", "dev", "Encoding with a full-size profile, beside plain PyTorch."),
    "entropy": ("benchmarks.entropy", "train", "The exact entropy step: speed beside float32, and its price in bits."),
    "rans": ("benchmarks.rans", "train", "The entropy coder: speed and overhead beside CompressAI's."),
    "edge": ("benchmarks.edge", "dev", "The whole edge path: frames a second, memory, bytes on the wire."),
    "edge-overload": ("benchmarks.edge_overload", "dev", "The edge under ten times its load: how fast it answers."),
    "serve": ("benchmarks.serve", "bench", "The cloud at saturation beside its bare decoder, LitServe and Ray Serve."),
    "fleet": ("benchmarks.fleet", "dev", "Past one machine: claims, ingest, scaling; the simulator beside a run."),
}
"""Name of a measurement, its module, the extra it needs, what it tells. Each ends with one JSON line."""


simulate_app = typer.Typer(help="Predict what nobody can measure here; one line of JSON last.", no_args_is_help=True)
app.add_typer(simulate_app, name="simulate")
SIMULATIONS = {
    "fleet": ("benchmarks.fleet_simulator", "dev", "GPUs, queue age, database and cost of 10^3 to 10^6 cameras."),
}


def _add_measurement(
    name: str, module: str, extra: str, text: str, group: typer.Typer = bench_app, verb: str = "bench"
) -> None:
    @group.command(name, help=f"{text} ({extra})", context_settings=PASS_ON, add_help_option=False)
    def run(context: typer.Context) -> None:
        if module.startswith("benchmarks."):
            root = Path(__file__).resolve().parents[1]
            if not (root / "benchmarks").is_dir():
                raise UsageError(f"aeic {verb} {name} runs from a checkout of the sources, which this is not")
            sys.path.insert(0, str(root))
        _run_module(module, extra, context.args)


for _name, _measurement in MEASUREMENTS.items():
    _add_measurement(_name, *_measurement)
for _name, _measurement in SIMULATIONS.items():
    _add_measurement(_name, *_measurement, simulate_app, "simulate")


def _version(value: bool) -> None:
    if value:
        print(f"aeic {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("-V", "--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Photographs in one or two kilobytes: encode at the edge, decode in the cloud."""


def _run_module(module: str, extra: str, arguments: list[str]) -> None:
    """``python -m module arguments`` in this process."""
    sys.argv = [f"aeic {module}", *arguments]
    with needs(extra):
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _pass_on(run: Callable[[list[str]], Any], arguments: list[str]) -> None:
    _finish(run(arguments))


def _finish(code: int | None) -> None:
    if code:
        raise typer.Exit(code)


def main(run: Callable[[], Any] = app) -> None:
    """The entry point: every error of ours becomes one line on stderr and its exit code."""
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")  # of CompressAI, at every import
    try:
        run()
    except (AeicError, UsageError) as error:
        print(f"aeic: {error}", file=sys.stderr)
        sys.exit(output.exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
