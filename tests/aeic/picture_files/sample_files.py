"""Reads every file of a folder of samples, such as the test images of other libraries: none may crash the reader.

    python -m tests.aeic.picture_files.sample_files FOLDER...

Each file is either a picture or refused with a typed error. A file whose size was read must have that size once it is
decoded. Prints the refusals by kind, every fault, and one line of JSON; the exit code is 0 if there is no fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from aeic.errors import InputError
from aeic.pixels import load_picture, picture_size

MAX_FILE_BYTES = 32 << 20
MAX_PIXELS = 16 << 20
SLOW_SECONDS = 20.0


def examine(data: bytes) -> str:
    """`picture`, or the name of the error; ValueError where the size in the header is not that of the picture."""
    try:
        size = picture_size(data, max_pixels=MAX_PIXELS)
    except InputError:
        size = None
    try:
        height, width, _ = load_picture(data, max_pixels=MAX_PIXELS).shape
    except InputError as error:
        return type(error).__name__
    if size != (width, height):
        raise ValueError(f"its header says {size}, the picture has {(width, height)}")
    return "picture"


def main() -> int:
    """1 if a file raised anything but a typed error, had two sizes, or took too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    counts: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    faults: list[str] = []
    for folder in parser.parse_args().folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.stat().st_size > MAX_FILE_BYTES:
                continue
            begin = time.monotonic()
            try:
                outcome = examine(path.read_bytes())
            except Exception as error:
                outcome = "fault"
                faults.append(f"{path}: {type(error).__name__}: {error}")
            if time.monotonic() - begin > SLOW_SECONDS:
                faults.append(f"{path}: {time.monotonic() - begin:.0f} s")
            counts[outcome] += 1
            kinds.setdefault(outcome, Counter())[path.suffix.lower()] += 1
    for outcome, suffixes in kinds.items():
        print(
            f"{outcome:<18}", ", ".join(f"{count} {suffix or 'without'}" for suffix, count in suffixes.most_common(12))
        )
    print(*faults, sep="\n")
    print(json.dumps({"files": counts.total(), **counts, "faults": len(faults)}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
