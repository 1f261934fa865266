"""pictures.csv: one row for each picture, codec and setting. Rows are written at once and never computed twice."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aeic.errors import InputError

COLUMNS = (
    *("codec", "setting", "picture", "crc32", "width", "height", "bytes", "bpp"),
    *("psnr", "ms_ssim", "st_lpips", "efflite_lpips", "efflite_dists", "encode_seconds", "decode_seconds"),
)
Row = dict[str, Any]


class Table:
    """pictures.csv, with rows by (codec, setting, picture, checksum of the picture file). New rows are appended."""

    def __init__(self, path: Path, known: Sequence[Path] = ()) -> None:
        self.path = path
        self.rows: dict[tuple[str, str, str, str], Row] = {}
        for source in (*known, path):
            if source.exists() or source != path:
                self._read(source)

    def _read(self, source: Path) -> None:
        with source.open("rb") as file:
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]  # the result of a last line that was cut short is computed again
        reader = csv.DictReader(io.StringIO(whole.decode(), newline=""))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InputError(f"{source} is not a table of this program (other columns): remove it or name another")
        for row in reader:
            self.rows[row["codec"], row["setting"], row["picture"], row["crc32"]] = _numbers(row)
        if source == self.path and whole != text:
            os.truncate(source, len(whole))

    def add(self, row: Row) -> None:
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        self.rows[row["codec"], str(row["setting"]), row["picture"], row["crc32"]] = row


def _numbers(row: dict[str, str]) -> Row:
    texts, whole = {"codec", "setting", "picture", "crc32"}, {"width", "height", "bytes"}
    return {k: v if k in texts else int(v) if k in whole else float(v) for k, v in row.items()}
