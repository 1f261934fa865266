"""Results files: reads what others publish, and writes what CompressAI's plotting tool reads.

A *document* is one codec on one set of pictures in CompressAI's form: {"name", "description", "results": {"bpp": [...],
"psnr-rgb": [...], ...}}. Read are CompressAI's own files, lists of documents (our results.json) and the text files of
AEIC's and StableCodec's authors: lines such as ``bpp = [0.005, 0.008]`` below the name of a set, such as
``### Kodak ###`` or ``# StableCodec on Kodak``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aeic.errors import InputError

MAX_BYTES = 16 << 20
MAX_POINTS = 10_000
SPELLINGS = {"psnr": "psnr-rgb", "ms-ssim": "ms-ssim-rgb", "msssim": "ms-ssim-rgb", "ms_ssim": "ms-ssim-rgb"}
"""Names of metrics in published files that are not CompressAI's."""
_SET = re.compile(r"^#+\s*(?:(?P<codec>.+?)\s+on\s+)?(?P<set>.+?)\s*#*\s*$")
_LINE = re.compile(r"^(\w[\w-]*)\s*=\s*\[(.*)\]\s*$")
Document = dict[str, Any]


def read(path: Path, name: str | None = None) -> list[Document]:
    """The documents in a results file, each with its "set" if the file names it. ``InputError`` if it is none.

    ``name`` replaces the codec's name, or gives it where the file has none; the file's own name is the last resort.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES >> 20} MiB: this is not a results file")
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    default = path.name.partition(".")[0]
    if path.suffix == ".json":
        found = _from_json(text, path, default)
    else:
        found = _from_lists(text, path, default)
    if not found:
        raise InputError(f"{path} holds no results: give JSON in CompressAI's form or lines such as bpp = [0.01, 0.02]")
    for document in found:
        if name is not None:
            document["name"] = name
        _check(document, path)
    return found


def _from_json(text: str, path: Path, default: str) -> list[Document]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    found = []
    for entry in content if isinstance(content, list) else [content]:
        if not isinstance(entry, dict):
            continue
        results = entry.get("results", entry)
        if not isinstance(results, dict) or "bpp" not in results:
            continue
        columns = {SPELLINGS.get(key, key): values for key, values in results.items() if isinstance(values, list)}
        rest = {key: value for key, value in entry.items() if key != "results"} if "results" in entry else {}
        found.append({"name": default, "description": ""} | rest | {"results": columns})
    return found


def _from_lists(text: str, path: Path, default: str) -> list[Document]:
    found: list[Document] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if heading := _SET.match(line):
            codec = heading["codec"] or (found[-1]["name"] if found else default)
            found.append({"name": codec, "description": heading["set"], "set": heading["set"], "results": {}})
        elif match := _LINE.match(line):
            if not found:
                found.append({"name": default, "description": "", "results": {}})
            try:
                values = [float(part) for part in match[2].split(",") if part.strip()]
            except ValueError:
                raise InputError(f"{path}, line {number}: {match[1]} is not a list of numbers") from None
            found[-1]["results"][SPELLINGS.get(match[1], match[1])] = values
    return [document for document in found if "bpp" in document["results"]]


def _check(document: Document, path: Path) -> None:
    """``InputError`` unless all columns are finite numbers, as many as there are rates."""
    results = document["results"]
    count = len(results["bpp"])
    if not 1 <= count <= MAX_POINTS:
        raise InputError(f"{path}: {document['name']} has {count} points, 1 to {MAX_POINTS} are possible")
    for key in list(results):
        values = results[key]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
        if numbers and len(values) == count:
            continue
        if key == "bpp" or (numbers and values):
            raise InputError(f"{path}: {document['name']} has {len(values)} values of {key} for {count} rates")
        del results[key]  # a column with gaps


def write_each(documents: Iterable[Document], folder: Path) -> list[Path]:
    """Write each document to a separate file, named by its codec. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for document in documents:
        name = re.sub(r"[^\w.-]+", "-", str(document["name"])).strip("-.") or "codec"
        path = folder / f"{name}.json"
        number = 1
        while path in written:  # two names that differ only in characters that a file's name may not have
            number += 1
            path = folder / f"{name}-{number}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        written.append(path)
    return written
