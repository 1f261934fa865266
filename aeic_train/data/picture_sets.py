"""Public test sets by name: what belongs to them, where they are, and whether a folder holds one of them.

Each set has a manifest in ``aeic_train/data/sets/``: number, names and sizes of its pictures and the digests of its
archives, as far as they are published. A published digest of a single picture was not found for any of these sets, so
:func:`check` compares names and sizes, and returns the digests of the files that it has seen. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from aeic.errors import InputError

FOLDER = Path(__file__).parent / "sets"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
"""The sets that have a manifest."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
SHOWN = 5
"""The most names of pictures in a message."""


@dataclass(frozen=True)
class Archive:
    """A file that the set is distributed as."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is publicly known of a set."""

    name: str
    title: str
    pictures: int
    """Number of pictures."""
    source: str
    """The page of its publishers."""
    place: str
    """Where the files are."""
    terms: str
    sizes: dict[str, tuple[int, int] | None]
    """Name of each picture: width and height, or None if they are not listed. Empty if the names are not listed."""
    longest_side: int | None
    """Pixels of the longer side of every picture, if all have the same."""
    archives: tuple[Archive, ...]

    @property
    def remedy(self) -> str:
        """The sentence that ends every message."""
        return f"Get the {self.pictures} pictures of {self.title} from {self.place} ({self.terms})"


def manifest(name: str) -> Manifest:
    """The manifest of a set; ``InputError`` lists the known ones."""
    if name not in NAMES:
        raise InputError(f"unknown set {name!r}: choose one of {', '.join(NAMES)}")
    data = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    return Manifest(
        name=name,
        title=data["title"],
        pictures=data["pictures"],
        source=data["source"],
        place=data["place"],
        terms=data["terms"],
        sizes=_sizes(data),
        longest_side=data.get("longest_side"),
        archives=tuple(Archive(**archive) for archive in data.get("archives", ())),
    )


def _sizes(data: dict[str, Any]) -> dict[str, tuple[int, int] | None]:
    names = data.get("names")
    if names is None:
        return {}
    rows = data.get("sizes", ())
    other = next(((row["width"], row["height"]) for row in rows if "numbers" not in row), None)
    special = {number: (row["width"], row["height"]) for row in rows for number in row.get("numbers", ())}
    numbers = range(names["first"], names["last"] + 1)
    return {names["pattern"].format(number): special.get(number, other) for number in numbers}


@dataclass(frozen=True)
class Seen:
    """A picture that was found: its file, size in pixels and digest."""

    path: Path
    width: int
    height: int
    sha256: str


def check(name: str, root: Path) -> list[Seen]:
    """The pictures of the set below ``root``, sorted by name, with their digests.

    ``InputError`` says what is missing, unexpected, unreadable or of another size, and where to get the set. An archive
    of the manifest that lies in ``root`` is compared with its published digest.
    """
    wanted = manifest(name)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}. {wanted.remedy}")
    paths = sorted((p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES), key=lambda path: path.name)
    names = [path.name for path in paths]
    for problem, some in (
        ("holds more than one picture of the name", sorted({n for n in names if names.count(n) > 1})),
        ("lacks", [n for n in wanted.sizes if n not in names]),
        ("holds pictures that are not in the set:", [n for n in names if wanted.sizes and n not in wanted.sizes]),
    ):
        if some:
            raise InputError(f"{root} {problem} {_few(some)}. {wanted.remedy}")
    if len(paths) != wanted.pictures:
        raise InputError(f"{root} holds {len(paths)} pictures, and the set has {wanted.pictures}. {wanted.remedy}")
    for archive in wanted.archives:
        _check_archive(root / archive.name, archive)
    return [_see(path, wanted) for path in paths]


def _see(path: Path, wanted: Manifest) -> Seen:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:  # reads the header only
                width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}). {wanted.remedy}") from None
    size = wanted.sizes.get(path.name)
    if size is not None and size != (width, height):
        raise InputError(f"{path.name} has {width}x{height} pixels instead of {size[0]}x{size[1]}. {wanted.remedy}")
    if wanted.longest_side is not None and max(width, height) != wanted.longest_side:
        long = f"its longer side should have {wanted.longest_side}"
        raise InputError(f"{path.name} has {width}x{height} pixels, and {long}. {wanted.remedy}")
    return Seen(path, width, height, _digest(path))


def _check_archive(path: Path, archive: Archive) -> None:
    if not path.is_file():
        return
    if path.stat().st_size != archive.bytes or _digest(path) != archive.sha256:
        raise InputError(f"{path} is not the published archive (SHA-256 {archive.sha256}). Get it again")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(seen: list[Seen]) -> str:
    """One SHA-256 for a set: of the lines ``SHA-256 of the file, two spaces, name``, as ``sha256sum`` prints them."""
    lines = (f"{picture.sha256}  {picture.path.name}\n" for picture in seen)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def document(name: str, seen: list[Seen]) -> dict[str, Any]:
    """What was found, as JSON: the set, its digest, and name, size and digest of every picture."""
    rows = [{"name": s.path.name, "width": s.width, "height": s.height, "sha256": s.sha256} for s in seen]
    return {"set": name, "sha256": digest(seen), "pictures": rows}


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
