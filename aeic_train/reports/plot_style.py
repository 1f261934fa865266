"""The style of all plots in docs/results: colours, and byte-identical files for identical figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#7f7f7f", "#b2a700", "#5e3c99")
"""Colours that colour-blind readers can distinguish. Our own codec is a thick black line."""


def open_pyplot() -> Any:
    """matplotlib's pyplot, without a display."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "aeic"  # equal figures give equal files
    from matplotlib import pyplot

    return pyplot


def tidy(axis: Any) -> None:
    """Give the axes a faint grid and remove the frame above and to the right."""
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Any, target: Path) -> None:
    """Write ``target``.svg and .png, and close the figure."""
    figure.savefig(target.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(target.with_suffix(".png"), dpi=80)
    open_pyplot().close(figure)
