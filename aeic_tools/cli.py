"""The command line ``aeic``. :mod:`aeic_tools.command_line` defines its commands; this module puts them together.

Exit codes: 0 success, 2 wrong usage, 3 a picture that cannot be encoded, 4 a damaged frame, 5 a missing, altered or
wrong bundle, 1 any other error. Heavy imports happen inside the commands, so ``aeic --help`` needs none of them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from aeic import __version__
from aeic.errors import AeicError
from aeic_tools import output
from aeic_tools.command_line import cloud_client, codec, measurements, packets, services, stores, training
from aeic_tools.files import UsageError

app = typer.Typer(
    name="aeic",
    help="Photographs in one or two kilobytes: encode at the edge, decode in the cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _commands in (codec, cloud_client, packets, services, training):
    app.add_typer(_commands.app)  # without a name: its commands are those of aeic itself
for _name, _group in {
    "spool": stores.spool_app,
    "store": stores.store_app,
    "bench": measurements.bench_app,
    "simulate": measurements.simulate_app,
}.items():
    app.add_typer(_group, name=_name)


def _version(value: bool) -> None:
    if value:
        print(f"aeic {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("-V", "--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Photographs in one or two kilobytes: encode at the edge, decode in the cloud."""


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
