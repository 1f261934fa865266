"""pictures.csv: one row for each picture, codec and setting. Rows are written at once and never computed twice.

The columns of perceptual_metrics.py stand behind the others, in the tables of runs that had them.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aeic.errors import InputError
from aeic_train.evaluation.perceptual_metrics import PICTURE_METRICS

COLUMNS = (
    *("codec", "setting", "picture", "crc32", "width", "height", "bytes", "bpp"),
    *("psnr", "ms_ssim", "st_lpips", "efflite_lpips", "efflite_dists", "encode_seconds", "decode_seconds"),
)
Row = dict[str, Any]


class Table:
    """pictures.csv, with rows by (codec, setting, picture, checksum of the picture file). New rows are appended."""

    def __init__(self, path: Path, known: Sequence[Path] = (), perceptual: Sequence[str] | None = None) -> None:
        """``perceptual`` are the additional columns of new rows; by default, those of the file at ``path``."""
        self.path = path
        self.perceptual = tuple(perceptual if perceptual is not None else columns_of(path) or ())
        self.rows: dict[tuple[str, str, str, str], Row] = {}
        for source in (*known, path):
            if source.exists() or source != path:
                self._read(source)

    def _read(self, source: Path) -> None:
        with source.open("rb") as file:
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]  # the result of a last line that was cut short is computed again
        reader = csv.DictReader(io.StringIO(whole.decode(), newline=""))
        names = tuple(reader.fieldnames or ())
        if names[: len(COLUMNS)] != COLUMNS or not set(names[len(COLUMNS) :]) <= set(PICTURE_METRICS):
            raise InputError(f"{source} is not a table of this program (other columns): remove it or name another")
        if source == self.path and set(names[len(COLUMNS) :]) != set(self.perceptual):
            had = ",".join(names[len(COLUMNS) :]) or "none"
            raise InputError(f"{source} was made with --perceptual {had}: give the same, or name another folder")
        for row in reader:
            self.rows[row["codec"], row["setting"], row["picture"], row["crc32"]] = _numbers(row)
        if source == self.path and whole != text:
            os.truncate(source, len(whole))

    def add(self, row: Row) -> None:
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, (*COLUMNS, *self.perceptual))
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        self.rows[row["codec"], str(row["setting"]), row["picture"], row["crc32"]] = row


def columns_of(path: Path) -> tuple[str, ...] | None:
    """The columns of these metrics of the table at ``path``; None if there is no table."""
    if not path.exists():
        return None
    with path.open(newline="") as file:
        return tuple(name for name in next(csv.reader(file), []) if name in PICTURE_METRICS)


def _numbers(row: dict[str, str]) -> Row:
    texts, whole = {"codec", "setting", "picture", "crc32"}, {"width", "height", "bytes"}
    return {k: v if k in texts else int(v) if k in whole else float(v) for k, v in row.items()}
