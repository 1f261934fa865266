"""Draws the diagrams: ``python docs/diagrams/draw.py`` writes NAME-light.svg and NAME-dark.svg of each.

``overview`` is in the README, ``model`` in docs/model.md. Coordinates are in pixels.
tests/tools/test_docs.py checks that the committed files are up to date.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

THEMES: dict[str, dict[str, Any]] = {
    "light": {
        "ink": "#1f2328",
        "soft": "#59636e",
        "line": "#818b98",
        "box": "#ffffff",
        "edge": "#ddf4ff",
        "cloud": "#fff1e5",
        "shared": "#eef3e6",
        "groups": ["#0072b2", "#e69f00", "#009e73", "#cc79a7"],
    },
    "dark": {
        "ink": "#f0f6fc",
        "soft": "#9198a1",
        "line": "#9198a1",
        "box": "#161b22",
        "edge": "#0c2d4d",
        "cloud": "#3d2410",
        "shared": "#1d2b1a",
        "groups": ["#4aa3df", "#f0b429", "#2bc48f", "#e08cc0"],
    },
}
# name, first line, second line, x, y of the top left corner; all boxes are BOX wide and high
BOX = (150, 58)
EDGE = [
    ("analysis", "pixels to latent", 40, 110),
    ("entropy coding", "latent to a 1-2 KB frame", 40, 220),
    ("spool", "frames on disk", 220, 220),
    ("uplink", "resends until answered", 220, 110),
]
CLOUD = [
    ("ingest", "answers after commit", 590, 110),
    ("store", "frames and job queue", 590, 220),
    ("worker", "decoding in batches", 770, 220),
    ("inference", "latent to pixels", 770, 110),
]
ARROWS = [
    "M115 44V106",
    "M115 168V216",
    "M190 249H216",
    "M295 220V172",
    "M370 128H586",
    "M590 150H374",
    "M665 168V216",
    "M740 249H766",
    "M845 220V172",
    "M845 110V48",
]


def overview(theme: str) -> str:
    """The parts of the two services and what passes between them."""
    color = THEMES[theme]
    parts = [
        _area(20, 60, 370, 240, "Edge: CPU, no torch", color["edge"], color["ink"]),
        _area(570, 60, 370, 240, "Cloud: CPU or GPU", color["cloud"], color["ink"]),
    ]
    parts += [_box(name, detail, x, y, *BOX, color) for name, detail, x, y in EDGE + CLOUD]
    parts += [_arrow(path, color) for path in ARROWS]
    parts += [
        _text(115, 36, "photograph", color["ink"], 14),
        _text(480, 119, "frames", color["ink"], 13),
        _text(480, 170, "acknowledgements", color["ink"], 13),
        _text(480, 205, "one gRPC stream", color["soft"], 12),
        _text(845, 36, "picture", color["ink"], 14),
    ]
    return _document(960, 320, parts, color)


# The networks of the model: name, detail, x, y, width of the box.
ENCODER = [
    ("stage 1", "1/2", 120, 96, 62),
    ("stage 2", "1/4", 198, 96, 62),
    ("stage 3", "1/8", 276, 96, 62),
    ("stage 4", "1/16", 354, 96, 62),
    ("stage 5", "1/32", 432, 96, 62),
    ("gains", "of the rate point", 560, 96, 120),
    ("h_a", "1/32 to 1/128", 560, 176, 120),
]
ENTROPY = [
    ("h_s", "1/128 to 1/32", 120, 300, 110),
    ("adapter_in.i", "M to X", 322, 300, 118),
    ("g_c", "one for all passes", 470, 300, 130),
    ("adapter_out.i", "X to 2M", 622, 300, 126),
]
GENERATOR = [
    ("inverse gains", "of the rate point", 120, 500, 130),
    ("g_s", "1/32 to 1/8", 290, 500, 110),
    ("UNet", "one step at 1/8", 480, 500, 130),
    ("picture decoder", "1/8 to pixels", 692, 500, 142),
]
PASSES = ("abcd", "dcba", "cdab", "badc")
"""[pass][channel group]: the parity class of the positions that are coded (docs/bitstream.md section 6.2)."""


def model(theme: str) -> str:
    """The networks of docs/model.md section 1, with the scale of every array, and the order of the four passes."""
    color = THEMES[theme]
    ink, soft = color["ink"], color["soft"]
    parts = [
        _area(20, 40, 820, 206, "Encoder", color["edge"], ink),
        _area(20, 256, 820, 190, "Both sides: the entropy model, in integers", color["shared"], ink),
        _area(20, 456, 820, 146, "Generator", color["cloud"], ink),
    ]
    parts += [_box(name, detail, x, y, width, 46, color) for name, detail, x, y, width in ENCODER + ENTROPY + GENERATOR]
    paths = [
        "M92 119H116",
        *(f"M{x} 119H{x + 12}" for x in (182, 260, 338, 416)),
        "M494 119H556",
        "M620 142V172",
        "M680 119H736",
        "M680 199H736",
        "M92 323H116",
        "M230 323H318",
        "M440 323H466",
        "M600 323H618",
        "M748 323H764",
        "M796 346V404H276V327",
        "M92 523H116",
        "M250 523H286",
        "M400 523H476",
        "M610 523H638",
        "M345 546V580H649V537",
        "M660 523H688",
        "M834 523H858",
    ]
    parts += [_arrow(path, color) for path in paths]
    parts += [f'<circle cx="649" cy="523" r="11" fill="{color["box"]}" stroke="{color["line"]}"/>']
    parts += [
        _text(649, 528, "+", ink, 15),
        _text(60, 115, "picture", ink, 13),
        _text(60, 131, "3 x H x W", soft, 11),
        _text(307, 162, "g_a: five stages, each Down and Star blocks", soft, 12),
        _text(527, 112, "y", ink, 13),
        _text(788, 112, "round(y - mean)", ink, 12),
        _text(788, 128, "symbols of y", soft, 11),
        _text(786, 192, "round(z - median)", ink, 12),
        _text(788, 208, "symbols of z", soft, 11),
        _text(60, 319, "symbols of z", ink, 12),
        _text(60, 335, "+ median", soft, 11),
        _text(274, 315, "base", ink, 13),
        _text(796, 319, "means,", ink, 12),
        _text(796, 335, "scales", ink, 12),
        _text(536, 397, "pass i = 0, 1, 2, 3: symbol + mean replaces the elements of the pass", soft, 12),
        _text(536, 424, "after pass 3, base is y_hat", ink, 12),
        _text(60, 519, "y_hat", ink, 13),
        _text(60, 535, "1/32 scale", soft, 11),
        _text(438, 515, "l", ink, 13),
        _text(497, 574, "residual", ink, 13),
        _text(894, 519, "picture,", ink, 12),
        _text(894, 535, "clamped", soft, 11),
    ]
    parts += _passes(870, 64, color)
    return _document(960, 620, parts, color, top=30)


def _passes(x: int, y: int, color: dict[str, Any]) -> list[str]:
    """One block of 2 x 2 positions for each pass, colored by the channel group that is coded there."""
    parts = [
        _text(x + 34, y - 16, "group coded at", color["soft"], 11),
        _text(x + 34, y - 3, "2 x 2 positions", color["soft"], 11),
    ]
    for index, classes in enumerate(PASSES):
        top = y + 14 + 78 * index
        parts.append(_text(x + 34, top - 2, f"pass {index}", color["ink"], 11))
        for place in range(4):
            left, up = x + 8 + 26 * (place % 2), top + 4 + 26 * (place // 2)
            group = classes.index("abcd"[place])
            parts.append(f'<rect x="{left}" y="{up}" width="26" height="26" fill="{color["groups"][group]}"/>')
            parts.append(_text(left + 13, up + 17, f"G{group}", color["box"], 11, bold=True))
    return parts


DIAGRAMS: dict[str, Callable[[str], str]] = {"overview": overview, "model": model}


def _document(width: int, bottom: int, parts: list[str], color: dict[str, Any], top: int = 0) -> str:
    view, font = f"0 {top} {width} {bottom - top}", "system-ui, sans-serif"
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" font-family="{font}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{color["line"]}"/></marker></defs>',
    ]
    return "\n".join([*head, *parts, "</svg>\n"])


def _box(name: str, detail: str, x: float, y: float, width: float, height: float, color: dict[str, Any]) -> str:
    size = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="8"'
    return "\n".join(
        (
            f'<rect {size} fill="{color["box"]}" stroke="{color["line"]}"/>',
            _text(x + width / 2, y + height / 2 - 4, name, color["ink"], 15 if width > 100 else 13, bold=True),
            _text(x + width / 2, y + height / 2 + 15, detail, color["soft"], 11),
        )
    )


def _arrow(path: str, color: dict[str, Any]) -> str:
    return f'<path d="{path}" fill="none" stroke="{color["line"]}" stroke-width="1.6" marker-end="url(#tip)"/>'


def _area(x: int, y: int, width: int, height: int, title: str, fill: str, ink: str) -> str:
    rect = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="12" fill="{fill}"/>'
    return rect + "\n" + _text(x + width / 2, y + 28, title, ink, 15, bold=True)


def _text(x: float, y: float, words: str, fill: str, size: int, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" text-anchor="middle"'
    return f'<text {place} fill="{fill}" font-size="{size}"{weight}>{escape(words)}</text>'


def main() -> None:
    """Write all files beside this script."""
    for name, draw in DIAGRAMS.items():
        for theme in THEMES:
            Path(__file__).with_name(f"{name}-{theme}.svg").write_text(draw(theme))


if __name__ == "__main__":
    main()
