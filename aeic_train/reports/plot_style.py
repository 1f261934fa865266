"""The style of all plots in docs/results: colours, axes with plain decimals, and byte-identical files for identical
figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#7f7f7f", "#b2a700", "#5e3c99")
"""Colours that colour-blind readers can distinguish. Our own codec is a thick black line."""
_CONVENTIONAL = ("vvc", "heic", "avif", "jxl", "webp", "jpeg")
_LEARNED = ("VTM", "StableCodec", "DiffEIC", "PerCo", "MS-ILLM", "HiFiC", "ELIC", "EVC-Small", "DLF")
COLOUR_OF = dict(zip(_CONVENTIONAL, COLOURS)) | dict(zip(_LEARNED, COLOURS))
"""The colour of each known codec, the same in every plot. VTM is VVC's reference software and shares its colour."""


def codec_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each codec: that of COLOUR_OF, where ``NAME-half`` has the colour of NAME. Other codecs take the
    colours that are left, in their order."""
    base = {name: name.removesuffix("-half") for name in names}
    free = [colour for colour in COLOURS if colour not in {COLOUR_OF.get(known) for known in base.values()}]
    unknown = [known for known in dict.fromkeys(base.values()) if known not in COLOUR_OF]
    taken = {known: (free or COLOURS)[number % len(free or COLOURS)] for number, known in enumerate(unknown)}
    return {name: COLOUR_OF.get(known) or taken[known] for name, known in base.items()}


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


def log_scale(axis: Any, direction: str) -> None:
    """Make the axis "x" or "y" logarithmic, with ticks as plain decimals (0.05 and 1,000 instead of powers of ten).

    Call it after plotting: an axis of few decades has more ticks in each.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set(**{f"{direction}scale": "log"})
    low, high = sorted(getattr(axis, f"get_{direction}lim")())
    decades = math.log10(high / low)
    steps = (1, 1.5, 2, 3, 5, 7) if decades < 0.8 else (1, 2, 3, 5) if decades < 1.3 else (1, 2, 5)
    of = getattr(axis, f"{direction}axis")
    of.set_major_locator(LogLocator(subs=steps if decades < 2.5 else (1,)))
    of.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    of.set_minor_locator(NullLocator())


def embed(target: Path, alt: str, caption: str) -> str:
    """Markdown of the plot beside the page: the image with its alternative text, and a caption."""
    return f"![{alt}]({target.name})\n\n*{caption}*\n"


def save_figure(figure: Any, target: Path) -> None:
    """Write ``target``.svg and .png, and close the figure."""
    figure.savefig(target.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(target.with_suffix(".png"), dpi=80)
    open_pyplot().close(figure)
