"""Measures the artefacts that the network adds to simple pictures: flat colours, ramps, pages, text, noise, small
sizes.

    aeic bench artefacts [--bundle BUNDLE] [--rates 0,4] [--out docs/results]

Frames are encoded and decoded for real. The error is decoded minus original, in levels of 0 to 255:

    offset   its largest mean over a channel: a shift of brightness or colour
    worst    its largest value: rings, borders, blotches (not meaningful for sharp edges and noise, which are lost)
    grid     the rms of the pattern that all squares of 32 pixels share, without its mean: a pattern at the spacing of
             the latents (not meaningful for sharp edges and noise)
    colour   the largest deviation of a channel from the mean of the three, in means over 16x16 pixels: colour blotches

The last line is one JSON object with the largest value of each, and separately for the strong colours. --out writes the
table artefacts.md, and artefacts.jpg, which shows the pictures above their reconstructions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from aeic.bundle import Bundle
from aeic.profiles import LATENT_STRIDE
from aeic_train.codecs.ours import OurCodec
from aeic_train.reports.plot_style import embed

Picture = NDArray[np.uint8]
MEASURES = ("offset", "worst", "grid", "colour")
HEIGHT, WIDTH, BLOTCH, COLUMNS = 192, 256, 16, 7
LEGEND = """| column | meaning |
|---|---|
| offset | largest mean error of a channel: a shift of brightness or colour |
| worst | largest error of a sample: rings, borders, blotches |
| grid | RMS of the pattern that all 32x32 squares share, without its mean: a pattern at the spacing of the latents |
| colour | largest distance of a channel's error from the mean of the three, both over 16x16 pixels: colour blotches |

`worst` and `grid` mean little for edges and noise (`frame`, `bars`, `text`, `text-inverse`, `noise`, `grain`), which no
codec keeps at such rates.
"""
SHARP = ("frame", "bars", "text", "text-inverse", "noise", "grain")
"""Pictures with edges or noise that no codec keeps at such rates. Their ``worst`` and ``grid`` are not meaningful."""
STRONG = ("red", "green", "blue", "ramp-colours")
"""Colours that are rare in photographs. They are reported separately."""
COLOURS = {
    **{"grey": (128, 128, 128), "black": (0, 0, 0), "white": (255, 255, 255), "dark": (40, 40, 40)},
    **{"light": (215, 215, 215), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)},
    **{"sky": (135, 180, 230), "skin": (224, 172, 140), "leaf": (70, 100, 40)},
}


def pictures() -> dict[str, Picture]:
    """The pictures by name, uint8 (H, W, 3); the same every time."""
    found = {name: flat(colour) for name, colour in COLOURS.items()}
    across, down = np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT)
    grey = np.broadcast_to(across[None, :, None], (HEIGHT, WIDTH, 3))
    hues = np.broadcast_arrays(across[None], down[:, None], 255 - across[None])
    found |= {"ramp": _levels(grey), "ramp-colours": _levels(np.stack(hues, 2))}
    page, bars = flat(COLOURS["white"]), flat(COLOURS["black"])
    page[24:-24, 24:-24] = 0
    bars[:, WIDTH // 4 : WIDTH // 2] = bars[:, 3 * WIDTH // 4 :] = 255
    found |= {"frame": page, "bars": bars, "text": text(255, 0), "text-inverse": text(0, 255)}
    rng = np.random.default_rng(0)
    found["noise"] = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    found["grain"] = _levels(128 + rng.normal(0, 12, (HEIGHT, WIDTH, 1)).repeat(3, 2))
    found |= {f"grey-{w}x{h}": flat(COLOURS["grey"], h, w) for w, h in ((16, 16), (33, 17), (65, 20))}
    found |= {"white-16x16": flat(COLOURS["white"], 16, 16), "ramp-16x16": _levels(grey[:16, ::16])}
    return found


def flat(colour: tuple[int, int, int], height: int = HEIGHT, width: int = WIDTH) -> Picture:
    return np.full((height, width, 3), colour, np.uint8)


def _levels(values: NDArray[np.float64]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def text(ground: int, ink: int) -> Picture:
    image = Image.new("RGB", (WIDTH, HEIGHT), (ground,) * 3)
    lines = "The quick brown fox\njumps over the lazy\ndog. 0123456789\nSphinx of black\nquartz, judge my vow"
    ImageDraw.Draw(image).multiline_text((12, 10), lines, (ink,) * 3, ImageFont.load_default(24))
    return np.asarray(image)


def measure(original: Picture, decoded: Picture) -> dict[str, float]:
    """The four values. ``grid`` is 0 if no square fits, and ``colour`` of a small picture covers the whole picture."""
    error = decoded.astype(np.float64) - original
    offsets = error.mean((0, 1))
    return {
        "offset": float(offsets[np.abs(offsets).argmax()]),
        "worst": float(np.abs(error).max()),
        "grid": _grid(error),
        "colour": _blotch(error - error.mean(2, keepdims=True)),
    }


def _grid(error: NDArray[np.float64]) -> float:
    side = LATENT_STRIDE
    rows, columns = (length // side for length in error.shape[:2])
    if rows * columns < 4:  # what only a few squares share is not a pattern
        return 0.0
    squares = error[: rows * side, : columns * side].reshape(rows, side, columns, side, 3).mean((0, 2))
    return float(np.sqrt((squares - squares.mean((0, 1))).var((0, 1)).max()))


def _blotch(error: NDArray[np.float64]) -> float:
    rows, columns = (max(1, length // BLOTCH) for length in error.shape[:2])
    height, width = (min(BLOTCH, length) for length in error.shape[:2])
    cut = error[: rows * height, : columns * width]
    return float(np.abs(cut.reshape(rows, height, columns, width, 3).mean((1, 3))).max())


def worst(rows: dict[str, dict[str, float]], strong: bool) -> dict[str, float]:
    """The largest magnitude of each value over the pictures for which it is meaningful: those of STRONG, or the
    others."""
    of = {picture: row for picture, row in rows.items() if (picture in STRONG) == strong}
    blind = {"worst", "grid"}
    return {m: max(abs(row[m]) for name, row in of.items() if m not in blind or name not in SHARP) for m in MEASURES}


def run(pair: OurCodec, rate: int) -> tuple[dict[str, dict[str, float]], dict[str, Picture]]:
    """Encode and decode all pictures with ``pair`` at a rate point: the values, and the decoded pictures."""
    decoded = {name: pair.decode(pair.encode(picture, rate)) for name, picture in pictures().items()}
    return {name: measure(picture, decoded[name]) for name, picture in pictures().items()}, decoded


def table(name: str, rates: dict[int, dict[str, dict[str, float]]]) -> str:
    """A Markdown page: what the values are, the sheet of pictures, and a row for each picture."""
    caption = f"The large pictures, each above its reconstruction at rate point {[*rates][-1]}."
    head = [f"{measure}, r{rate}" for rate in rates for measure in MEASURES]
    lines = [f"Errors that {name} adds to simple pictures (`aeic bench artefacts`): decoded minus original, in levels"]
    lines += [f"of 0 to 255. {', '.join(f'r{rate}' for rate in rates)}: rate points.\n", LEGEND]
    lines += [embed(Path("artefacts.jpg"), "Simple pictures with their names, each above its reconstruction", caption)]
    lines += ["| picture | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for picture in pictures():
        cells = [f"{rows[picture][m]:.1f}" for rows in rates.values() for m in MEASURES]
        lines.append(f"| {picture} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def sheet(decoded: dict[str, Picture]) -> Image.Image:
    """The large pictures, each below its name and above its reconstruction."""
    names = [name for name, picture in pictures().items() if picture.shape[0] == HEIGHT]
    columns = [np.concatenate([_label(name), pictures()[name], decoded[name]]) for name in names]
    columns += [np.zeros_like(columns[0])] * (-len(columns) % COLUMNS)
    rows = [np.concatenate(columns[i : i + COLUMNS], axis=1) for i in range(0, len(columns), COLUMNS)]
    return Image.fromarray(np.concatenate(rows))


def _label(name: str) -> Picture:
    """A strip with the name of the picture below it."""
    image = Image.new("RGB", (WIDTH, 24), (24, 24, 26))
    ImageDraw.Draw(image).text((WIDTH // 2, 4), name, (238, 238, 238), ImageFont.load_default(14), anchor="ma")
    return np.asarray(image)


def main(argv: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="aeic bench artefacts", description=__doc__, formatter_class=form)
    parser.add_argument("--bundle", "-m", type=Path, help="default: the one in models/")
    parser.add_argument("--rates", default="0,4", help="our rate numbers with commas")
    parser.add_argument("--out", type=Path, help="folder for artefacts.md and .jpg")
    options = parser.parse_args(argv)
    pair = OurCodec(Bundle.load(options.bundle), rates=[int(rate) for rate in options.rates.split(",")])
    found = {rate: run(pair, rate) for rate in pair.settings}
    rates = {rate: rows for rate, (rows, _) in found.items()}
    print(table(pair.name, rates))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "artefacts.md").write_text(table(pair.name, rates))
        sheet(found[pair.settings[-1]][1]).save(options.out / "artefacts.jpg", quality=85)
    found_worst = {
        str(rate): {
            kind: {name: round(value, 2) for name, value in worst(rows, kind == "strong").items()}
            for kind in ("plain", "strong")
        }
        for rate, rows in rates.items()
    }
    print(json.dumps({"bench": "artefacts", "codec": pair.name, "worst": found_worst}))


if __name__ == "__main__":
    main()
