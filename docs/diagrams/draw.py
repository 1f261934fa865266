"""Draws the overview diagram of the README: ``python docs/diagrams/draw.py`` writes overview-light.svg and -dark.svg.

Coordinates are in pixels of a 960x320 canvas. tests/tools/test_docs.py checks that the committed files are up to date.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 960, 320
THEMES = {
    "light": {
        "ink": "#1f2328",
        "soft": "#59636e",
        "line": "#818b98",
        "box": "#ffffff",
        "edge": "#ddf4ff",
        "cloud": "#fff1e5",
    },
    "dark": {
        "ink": "#f0f6fc",
        "soft": "#9198a1",
        "line": "#9198a1",
        "box": "#161b22",
        "edge": "#0c2d4d",
        "cloud": "#3d2410",
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


def draw(theme: str) -> str:
    """The diagram as an SVG document; ``theme`` is a key of THEMES."""
    color = THEMES[theme]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{color["line"]}"/></marker></defs>',
        _area(20, "Edge: CPU, no torch", color["edge"], color["ink"]),
        _area(570, "Cloud: CPU or GPU", color["cloud"], color["ink"]),
    ]
    for name, detail, x, y in EDGE + CLOUD:
        size = f'x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="8"'
        parts.append(f'<rect {size} fill="{color["box"]}" stroke="{color["line"]}"/>')
        parts.append(_text(x + BOX[0] / 2, y + 25, name, color["ink"], 15, bold=True))
        parts.append(_text(x + BOX[0] / 2, y + 44, detail, color["soft"], 11))
    parts += [
        f'<path d="{path}" fill="none" stroke="{color["line"]}" stroke-width="1.6" marker-end="url(#tip)"/>'
        for path in ARROWS
    ]
    parts += [
        _text(115, 36, "photograph", color["ink"], 14),
        _text(480, 119, "frames", color["ink"], 13),
        _text(480, 170, "acknowledgements", color["ink"], 13),
        _text(480, 205, "one gRPC stream", color["soft"], 12),
        _text(845, 36, "picture", color["ink"], 14),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _area(x: int, title: str, fill: str, ink: str) -> str:
    rect = f'<rect x="{x}" y="60" width="370" height="240" rx="12" fill="{fill}"/>'
    return rect + "\n" + _text(x + 185, 88, title, ink, 15, bold=True)


def _text(x: float, y: float, words: str, fill: str, size: int, *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" text-anchor="middle"'
    return f'<text {place} fill="{fill}" font-size="{size}"{weight}>{escape(words)}</text>'


def main() -> None:
    """Write both files beside this script."""
    for theme in THEMES:
        Path(__file__).with_name(f"overview-{theme}.svg").write_text(draw(theme))


if __name__ == "__main__":
    main()
