"""``aeic edge``, ``bundle``, ``cloud``, ``worker`` and ``doctor``: the services and the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aeic_tools.command_line.options import PASS_ON, Model, finish, run_module
from aeic_tools.files import UsageError

app = typer.Typer()


@app.command(context_settings=PASS_ON, add_help_option=False)
def edge(context: typer.Context) -> None:
    """Run the edge service (extra edge-cpu). Settings: AEIC_EDGE_*, see docs/reference/edge.md."""
    run_module("edge_encoder", "edge-cpu", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def bundle(context: typer.Context) -> None:
    """Stage a model bundle on an edge box, show its state, or roll back (extra edge-cpu). See docs/how-to/edge.md."""
    run_module("edge_encoder.bundle_update", "edge-cpu", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def cloud(context: typer.Context) -> None:
    """Run the cloud service (extra cloud-cpu or cloud). Settings: AEIC_CLOUD_*, see docs/reference/cloud.md."""
    run_module("cloud_decoder", "cloud-cpu", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def worker(context: typer.Context) -> None:
    """Run a worker of a fleet (extra fleet), like aeic cloud --role worker. See docs/how-to/fleet.md."""
    run_module("cloud_decoder", "cloud-cpu", ["--role", "worker", *context.args])


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
    finish(tool.run(tool.Options(tuple(role or ()), model, cloud_address, edge_data, cloud_data), json))
