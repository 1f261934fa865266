"""``aeic train``, ``export``, ``convert`` and ``import-official``: from a training to a bundle."""

from __future__ import annotations

import typer

from aeic_tools.command_line.options import PASS_ON, pass_on
from aeic_tools.extras import needs

app = typer.Typer()


@app.command(context_settings=PASS_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a model (extra train). See docs/training.md."""
    with needs("train"):
        from aeic_train.training.trainer import main as run
    pass_on(run, context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def export(context: typer.Context) -> None:
    """Export a training run as a bundle, or with --random AEIC-SE without its weights (extra train)."""
    with needs("train"):
        if "--random" in context.args:
            from aeic_train.export.random_weights import main as run
        else:
            from aeic_train.export.bundle import main as run
    pass_on(run, context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def convert(context: typer.Context) -> None:
    """Convert official checkpoints to a bundle (extra train). See docs/how-to/official.md."""
    with needs("train"):
        from aeic_train.export.from_official import main as run
    pass_on(run, context.args)


@app.command("import-official", context_settings=PASS_ON, add_help_option=False)
def import_official(context: typer.Context) -> None:
    """Convert a stream of the research code to latents in an npz (extra train)."""
    with needs("train"):
        from aeic_nets.official.archive import main as run
    pass_on(run, context.args)
