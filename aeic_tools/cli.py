"""The command line ``aeic``. It defines the options; each command does its work in a module that it imports.

Exit codes: 0 success, 2 wrong usage, 3 a picture that cannot be encoded, 4 a damaged frame, 5 a missing, altered or
wrong bundle, 1 any other error. Heavy imports happen inside the commands, so ``aeic --help`` needs none of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_module
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from aeic import __version__
from aeic.errors import AeicError
from aeic_tools import output
from aeic_tools.extras import needs
from aeic_tools.files import UsageError, is_there

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
Threads = Annotated[int, typer.Option("-j", "--threads", min=0, help="CPU threads; 0 uses all.")]
Force = Annotated[bool, typer.Option("-f", "--force", help="Overwrite existing files.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each file.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")]


@app.command()
def encode(
    source: In,
    target: Out,
    rate: Annotated[str | None, typer.Option("-r", "--rate", help="Rate point, by number or name.")] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=10, help="Largest frame, in bytes; the picture is scaled down if necessary.")
    ] = None,
    target_bytes: Annotated[
        int | None, typer.Option(min=10, help="The same, or the smallest frame if nothing fits.")
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(min=16, max=8192, help="Scale longer sides down to N pixels first.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="300B, 1kB or 2kB: about this size for any picture.")] = None,
    stretch: Annotated[
        bool, typer.Option("--stretch", help="Spread the grey levels of 16-bit pictures, for thermal cameras.")
    ] = False,
    colour_fix: Annotated[
        str, typer.Option(help="Add 12 bytes for a colour correction: never, always, or auto (over 768x768 pixels).")
    ] = "never",
    recursive: Annotated[bool, typer.Option("-R", "--recursive", help="Include subfolders.")] = False,
    skip_existing: Annotated[bool, typer.Option(help="Skip pictures whose frame exists, to resume.")] = False,
    model: Model = None,
    threads: Threads = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode a picture (JPEG, PNG, WebP, AVIF, HEIC), or a folder of them, into frames of one or two kilobytes."""
    from aeic_tools.commands import codec

    options = codec.Options(model, threads, force, json, quiet)
    wanted = codec.SizeOptions(rate, max_bytes, target_bytes, max_side, preset, stretch, colour_fix)
    _finish(codec.encode(source, target, wanted, options, recursive=recursive, skip_existing=skip_existing))


@app.command()
def decode(
    source: In,
    target: Out,
    picture_format: Annotated[
        str | None,
        typer.Option("--format", help="png, webp or jpeg; the default is the suffix of OUT, and png for a pipe."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or onnx (no torch).")] = "auto",
    official_tiling: Annotated[
        bool, typer.Option(help="Decode large pictures in the tiles of the authors' code (profiles se and me, torch).")
    ] = False,
    model: Model = None,
    threads: Threads = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decode a frame into a picture."""
    from aeic_tools.commands import codec

    options = codec.Options(model, threads, force, json, quiet)
    _finish(codec.decode(source, target, picture_format, codec.DecodeOptions(device, official_tiling), options))


@app.command()
def info(source: Annotated[str, typer.Argument(metavar="FILE")], model: Model = None, json: Json = False) -> None:
    """Print the header of a frame. Needs no model."""
    from aeic_tools.commands import codec

    _finish(codec.info(source, bundle=model, as_json=json))


@app.command()
def latents(
    source: Annotated[str, typer.Argument(metavar="FILE")],
    target: Annotated[str, typer.Argument(metavar="OUT.npz")],
    model: Model = None,
    threads: Threads = 0,
    force: Force = False,
) -> None:
    """Write the decoded latents as an npz and print their digest.

    Two machines that print the same digest agree bit for bit. The digest is the SHA-256 of the npz's y_hat:
    little-endian float32, in C order, before the gain is undone. The synthesis takes y_hat times inverse_gains, channel
    by channel.
    """
    from aeic_tools.commands import codec

    _finish(codec.latents(source, target, bundle=model, threads=threads, force=force))


@app.command()
def frames(
    source: Annotated[str | None, typer.Option(help="Only the frames of this source.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most.")] = 20,
    url: Annotated[str, typer.Option(help="Address of the cloud.", envvar="AEIC_URL")] = "http://127.0.0.1:8081",
    token: Annotated[str | None, typer.Option(help="Bearer token.", envvar="AEIC_TOKEN")] = None,
    json: Json = False,
) -> None:
    """Print the newest frames of a cloud with their ids, the newest first."""
    with needs("client"):
        from aeic_tools.commands import frames as frames_command

    _finish(frames_command.frames(source, limit, url, token, as_json=json))


@app.command()
def ask(
    frame: Annotated[UUID, typer.Argument(metavar="FRAME", help="The id of a frame in the cloud.")],
    region: Annotated[
        str | None,
        typer.Option(metavar="X,Y,W,H", help="A part of it, in pixels of the original; by default the whole."),
    ] = None,
    original: Annotated[bool, typer.Option("--original", help="The photograph, not a reconstruction.")] = False,
    now: Annotated[bool, typer.Option("--now", help="A new picture of the same camera, taken at once.")] = False,
    max_bytes: Annotated[
        int | None,
        typer.Option("--bytes", min=64, help="Largest answer, in bytes; by default 1500, or 32768 for an original."),
    ] = None,
    target: Annotated[str | None, typer.Option("-o", "--out", metavar="OUT", help="File of the picture.")] = None,
    url: Annotated[str, typer.Option(help="Address of the cloud.", envvar="AEIC_URL")] = "http://127.0.0.1:8081",
    token: Annotated[str | None, typer.Option(help="Bearer token.", envvar="AEIC_TOKEN")] = None,
    deadline: Annotated[float, typer.Option(min=1, max=86400, help="Seconds after which the request expires.")] = 60.0,
    force: Force = False,
) -> None:
    """Ask a camera for more of a picture: a region, better quality, the original, or a new one.

    See docs/look-closer.md.
    """
    with needs("client"):
        from aeic_tools.commands import ask as ask_command

    limit = max_bytes or (32768 if original else 1500)
    asked = frame, region, limit, target, url, token, deadline
    _finish(ask_command.ask(*asked, original=original, now=now, force=force))


@app.command()
def delete(
    frames: Annotated[list[UUID] | None, typer.Argument(metavar="[FRAME]...", help="Ids of frames.")] = None,
    source: Annotated[str | None, typer.Option(help="Delete the frames of this source instead.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only those that arrived at or after this time.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Only those that arrived before this time.")] = None,
    url: Annotated[str, typer.Option(help="Address of the cloud.", envvar="AEIC_URL")] = "http://127.0.0.1:8081",
    token: Annotated[str | None, typer.Option(help="Bearer token.", envvar="AEIC_TOKEN")] = None,
) -> None:
    """Delete frames from a cloud, with their pictures. Prints their number.

    An operator can bring them back with aeic store undelete, during the grace period.
    """
    with needs("client"):
        from aeic_tools.commands import delete as delete_command

    _finish(delete_command.delete(frames or [], source, since, until, url, token))


@app.command()
def split(
    source: Annotated[str, typer.Argument(metavar="FRAME", help="A .aeic file, or - for stdin.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="A folder, or - for lines of hexadecimal.")],
    size: Annotated[int, typer.Option(min=1, max=65535, help="Largest packet, in bytes, such as 222, 255 or 340.")],
    pad: Annotated[bool, typer.Option(help="Fill every packet up to the size.")] = False,
    force: Force = False,
) -> None:
    """Split a frame into packets for a radio or modem. See docs/packets.md."""
    from aeic_tools.commands import packets

    _finish(packets.split(source, target, size, pad=pad, force=force))


@app.command()
def join(
    sources: Annotated[list[str], typer.Argument(metavar="IN...", help="Folders, packet files, or - for hexadecimal.")],
    target: Annotated[str, typer.Argument(metavar="FRAME", help="The .aeic file to write, or - for stdout.")],
    force: Force = False,
) -> None:
    """Join packets to the frame that they hold. The exit code is 4 if bytes are missing."""
    from aeic_tools.commands import packets

    _finish(packets.join(sources, target, force=force))


@app.command(context_settings=PASS_ON, add_help_option=False)
def edge(context: typer.Context) -> None:
    """Run the edge service (extra edge-cpu). Settings: AEIC_EDGE_*, see docs/reference/edge.md."""
    _run_module("edge_encoder", "edge-cpu", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def bundle(context: typer.Context) -> None:
    """Stage a model bundle on an edge box, show its state, or roll back (extra edge-cpu). See docs/how-to/edge.md."""
    _run_module("edge_encoder.bundle_update", "edge-cpu", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def cloud(context: typer.Context) -> None:
    """Run the cloud service (extra cloud-cpu or cloud). Settings: AEIC_CLOUD_*, see docs/reference/cloud.md."""
    _run_module("cloud_decoder", "cloud-cpu", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def worker(context: typer.Context) -> None:
    """Run a worker of a fleet (extra fleet), like aeic cloud --role worker. See docs/how-to/fleet.md."""
    _run_module("cloud_decoder", "cloud-cpu", ["--role", "worker", *context.args])


@app.command()
def doctor(
    role: Annotated[
        list[str] | None, typer.Option(help="edge or cloud; the default is what is installed. May be repeated.")
    ] = None,
    model: Model = None,
    cloud_address: Annotated[
        str, typer.Option("--cloud", help="HOST:PORT of the cloud's gRPC [env: AEIC_EDGE_CLOUD_ADDRESS].")
    ] = "",
    edge_data: Annotated[Path | None, typer.Option(help="The edge's folder [env: AEIC_EDGE_DATA_DIR].")] = None,
    cloud_data: Annotated[Path | None, typer.Option(help="The cloud's folder [env: AEIC_CLOUD_DATA_DIR].")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Examine the installation: packages, runtimes, GPU, model, link, clock, disk, spool and store.

    Each problem is printed with its remedy. The exit code is 1 if something has failed.
    """
    from aeic_tools import doctor as tool

    if unknown := sorted(set(role or ()) - set(tool.ROLES)):
        raise UsageError(f"--role {unknown[0]}: choose edge or cloud")
    _finish(tool.run(tool.Options(tuple(role or ()), model, cloud_address, edge_data, cloud_data), json))


spool_app = typer.Typer(help="Commands for the edge's spool.", no_args_is_help=True)
app.add_typer(spool_app, name="spool")


@spool_app.command("check")
def spool_check(
    folder: Annotated[Path, typer.Argument(envvar="AEIC_EDGE_DATA_DIR", help="Folder of the spool.")],
) -> None:
    """Check a spool without changing it, even while the edge runs.

    Prints one line of JSON. The exit code is 4 if something is damaged.
    """
    with needs("edge-cpu"):
        from edge_encoder.spool.verification import check
    is_there(folder / "spool.sqlite3")
    report = check(folder)
    typer.echo(json_module.dumps({"ok": report.ok, **dataclasses.asdict(report)}))
    if not report.ok:
        raise typer.Exit(4)


store_app = typer.Typer(help="Commands for the cloud's store.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@store_app.command()
def upgrade(
    url: Annotated[str, typer.Argument(envvar="AEIC_CLOUD_DATABASE_URL", help="SQLAlchemy URL of the store.")],
) -> None:
    """Migrate an older store to the current tables (extra fleet).

    It is safe to repeat. See docs/how-to/fleet.md.
    """
    with needs("fleet"):
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

        from cloud_decoder.store.migrate import upgrade as bring_up
    try:
        bring_up(make_url(url))
    except (ArgumentError, NoSuchModuleError):  # without the text: it may hold a password
        raise UsageError(
            "that is not the URL of a database: write postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        ) from None
    except OperationalError as error:
        raise UsageError(f"the database cannot be reached ({error.orig}): check the address") from error


StoreUrl = Annotated[str, typer.Argument(envvar="AEIC_CLOUD_DATABASE_URL", help="SQLAlchemy URL of the store.")]
TenantOf = Annotated[str | None, typer.Option(help="Only frames of this tenant.")]
IdOf = Annotated[UUID | None, typer.Option(help="Only the frame with this id.")]


@store_app.command()
def requeue(url: StoreUrl, tenant: TenantOf = None, id: IdOf = None) -> None:
    """Return failed frames to the queue, after the cause has been fixed. Prints their number."""
    with _store(url) as store:
        print(store.queue.requeue(store.clock(), tenant, id))


@store_app.command()
def undelete(
    url: StoreUrl,
    tenant: TenantOf = None,
    id: IdOf = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Also frames that clients have deleted.")] = False,
) -> None:
    """Bring back frames that retention has marked and not removed yet. Prints their number.

    Correct the retention settings first, or the frames are marked again. Frames that clients have deleted come back
    with --id or --deleted only.
    """
    with _store(url) as store:
        print(store.retention.undelete(tenant, id, deleted=deleted))


@store_app.command()
def accept_clock(url: StoreUrl) -> None:
    """Trust the clock as it is now, after the service has refused it as implausible. Retention then runs again."""
    with _store(url) as store:
        from cloud_decoder.store.clock import accept

        seen, now = accept(store.database)
    print(f"the last time seen was {seen}; the store now trusts {now}")


@store_app.command("check")
def store_check(url: StoreUrl) -> None:
    """Check a store without changing it, even while the cloud runs: pages, digests and counters.

    Prints one line of JSON. The exit code is 4 if something is damaged.
    """
    with needs("cloud-cpu"):
        from cloud_decoder.store.backup import check
    report = check(_store_address(url))
    typer.echo(json_module.dumps(report.as_dict()))
    if not report.ok:
        raise typer.Exit(4)


@store_app.command("backup")
def store_backup(url: StoreUrl, target: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")]) -> None:
    """Copy an SQLite store to a new file, even while the cloud runs, and check the copy. Prints one line of JSON."""
    with needs("cloud-cpu"):
        from cloud_decoder.store.backup import backup
    typer.echo(json_module.dumps(backup(_store_address(url), target).as_dict()))


@store_app.command("restore")
def store_restore(
    url: StoreUrl, source: Annotated[Path, typer.Argument(metavar="FILE", help="A file of aeic store backup.")]
) -> None:
    """Check a backup and replace an SQLite store with it. Stop the cloud first.

    The old store is kept beside it. Prints one line of JSON.
    """
    with needs("cloud-cpu"):
        from cloud_decoder.store.backup import restore
    report, kept = restore(_store_address(url, missing=True), source)
    typer.echo(json_module.dumps(report.as_dict() | {"kept": None if kept is None else str(kept)}))


def _store_address(url: str, missing: bool = False) -> Any:
    """The parsed URL of a store. ``UsageError`` if it is not one, or names a file that does not exist."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        address = make_url(url)
        sqlite = address.get_backend_name() == "sqlite"
    except (ArgumentError, NoSuchModuleError):  # without the text: it may hold a password
        raise UsageError("that is not the URL of a database: write sqlite:///PATH/store.db") from None
    file = Path(address.database or "")
    if sqlite and not (is_there(file) and file.is_file()) and not missing:
        raise UsageError("there is no such file: write sqlite:///PATH/store.db")  # do not create one
    return address


@contextlib.contextmanager
def _store(url: str) -> Iterator[Any]:
    """The store at ``url``, closed at the end."""
    with needs("cloud-cpu"):
        from cloud_decoder.store.store import Store
    store = Store(_store_address(url))
    try:
        yield store
    finally:
        store.close()


@app.command(context_settings=PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a model (extra train). See docs/training.md."""
    with needs("train"):
        from aeic_train.training.trainer import main as run
    _pass_on(run, context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def export(context: typer.Context) -> None:
    """Export a training run as a bundle, or with --random AEIC-SE without its weights (extra train)."""
    with needs("train"):
        if "--random" in context.args:
            from aeic_train.export.random_weights import main as run
        else:
            from aeic_train.export.bundle import main as run
    _pass_on(run, context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def convert(context: typer.Context) -> None:
    """Convert official checkpoints to a bundle (extra train). See docs/how-to/official.md."""
    with needs("train"):
        from aeic_train.export.from_official import main as run
    _pass_on(run, context.args)


@app.command("import-official", context_settings=PASS_ON, add_help_option=False)
def import_official(context: typer.Context) -> None:
    """Convert a stream of the research code to latents in an npz (extra train)."""
    with needs("train"):
        from aeic_nets.official.archive import main as run
    _pass_on(run, context.args)


bench_app = typer.Typer(
    help="Run a measurement. Each prints a table and, last, one line of JSON.", no_args_is_help=True
)
app.add_typer(bench_app, name="bench")


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
        _finish(by_size.run(paths, sizes, reps=reps, bundle=model, threads=threads, table=not as_json))
        return
    _finish(single.run(pictures, reps=reps, bundle=model, threads=threads, table=not as_json))


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
app.add_typer(simulate_app, name="simulate")
SIMULATIONS = {
    "fleet": ("benchmarks.fleet.simulator", "dev", "GPUs, queue age, database load and cost of 10^3 to 10^6 cameras."),
}


def _add_measurement(
    name: str, module: str, extra: str, text: str, group: typer.Typer = bench_app, verb: str = "bench"
) -> None:
    @group.command(name, help=f"{text} (extra {extra})", context_settings=PASS_ON, add_help_option=False)
    def run(context: typer.Context) -> None:
        if module.startswith("benchmarks."):
            root = Path(__file__).resolve().parents[1]
            if not (root / "benchmarks").is_dir():
                raise UsageError(
                    f"aeic {verb} {name} needs a checkout of the repository, and this is an installed package"
                )
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
    """The entry point. It turns every error of ours into one line on stderr and an exit code."""
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")  # of CompressAI, at every import
    try:
        run()
    except (AeicError, UsageError) as error:
        print(f"aeic: {error}", file=sys.stderr)
        sys.exit(output.exit_code(error))
    except PermissionError as error:
        where = f"{error.filename}: " if error.filename else ""
        remedy = "run this as the owner of the files; those of a systemd service need sudo"
        print(f"aeic: {where}permission denied: {remedy}", file=sys.stderr)
        sys.exit(output.exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
