"""Any program as a codec, by the command templates of a TOML file. docs/how-to/other-codecs.md has some."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aeic_train.codecs.base import CodecFailed, CodecUnavailable, Picture, run_program


@dataclass(frozen=True)
class Commands:
    """Any program as a codec. A TOML file gives ``name``, ``settings`` (fewest bytes first), ``encode``, ``decode``,
    ``suffix``.

    ``encode = "cjxl {input} {output} -q {setting}"`` is given a PNG as {input}; ``decode`` must write a PNG. The words
    are split before names are filled in and no shell sees them. Both templates may use {width} and {height}. The
    program runs in ``folder``, if the file gives one.
    """

    name: str
    settings: Sequence[int | float | str]
    encoder: str
    decoder: str
    suffix: str = ".bin"
    folder: Path | None = None

    def encode(self, picture: Picture, setting: Any) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "picture.png"), Path(folder, "coded" + self.suffix)
            Image.fromarray(picture).save(source)
            height, width = picture.shape[:2]
            self._run(self.encoder, input=source, output=target, setting=setting, width=width, height=height)
            return target.read_bytes()

    def decode(self, data: bytes, width: int, height: int) -> Picture:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "coded" + self.suffix), Path(folder, "picture.png")
            source.write_bytes(data)
            self._run(self.decoder, input=source, output=target, width=width, height=height)
            return np.asarray(Image.open(target).convert("RGB"))

    def _run(self, template: str, **values: object) -> None:
        run_program([word.format(**values) for word in shlex.split(template)], self.name, folder=self.folder)
        if not Path(str(values["output"])).is_file():
            raise CodecFailed(f"{self.name}: {template!r} ended well but wrote no {{output}}")


@dataclass(frozen=True)
class FolderProgram:
    """A program that codes and decodes a folder of pictures in one call, as research code does.

    A TOML file gives ``name``, ``settings`` and ``roundtrip``. That template is given a folder {pictures} with one PNG,
    and must write a PNG into {reconstructions} and the coded file into {streams}, or into {reconstructions} as anything
    but a PNG. All coded files count. As both directions and the start of the program are one call, there are no times.
    """

    name: str
    settings: Sequence[int | float | str]
    command: str
    folder: Path | None = None
    timed: bool = False
    _made: dict[bytes, Picture] = field(default_factory=dict)

    def encode(self, picture: Picture, setting: Any) -> bytes:
        with tempfile.TemporaryDirectory() as scratch:
            folders = {name: Path(scratch, name) for name in ("pictures", "reconstructions", "streams")}
            for folder in folders.values():
                folder.mkdir()
            Image.fromarray(picture).save(folders["pictures"] / "picture.png")
            words = [word.format(setting=setting, **folders) for word in shlex.split(self.command)]
            run_program(words, self.name, folder=self.folder)
            made = sorted(folders["reconstructions"].rglob("*.png"))
            written = [path for name in ("reconstructions", "streams") for path in sorted(folders[name].rglob("*"))]
            data = b"".join(path.read_bytes() for path in written if path.is_file() and path not in made)
            if len(made) != 1 or not data:
                raise CodecFailed(
                    f"{self.name}: {len(made)} pictures and {len(data)} coded bytes instead of one picture and its file"
                )
            self._made.clear()
            self._made[data] = np.asarray(Image.open(made[0]).convert("RGB"))
        return data

    def decode(self, data: bytes, width: int, height: int) -> Picture:
        """The reconstruction that the last :meth:`encode` made."""
        try:
            return self._made.pop(data)
        except KeyError:
            raise CodecFailed(f"{self.name}: it decodes only what it has just coded") from None


def from_file(path: Path) -> Commands | FolderProgram:
    """The codec that a TOML file describes. :class:`CodecUnavailable` if a key or the program is missing."""
    try:
        table = tomllib.loads(path.read_text())
        name, settings = table["name"], table["settings"]
        folder = Path(table["folder"]).expanduser() if "folder" in table else None
        codec: Commands | FolderProgram
        if "roundtrip" in table:
            codec = FolderProgram(name, settings, table["roundtrip"], folder)
            commands = [codec.command]
        else:
            codec = Commands(name, settings, table["encode"], table["decode"], table.get("suffix", ".bin"), folder)
            commands = [codec.encoder, codec.decoder]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise CodecUnavailable(
            f"{path}: {error}; it needs name, settings, and either encode and decode or roundtrip"
        ) from error
    if folder is not None and not folder.is_dir():
        raise CodecUnavailable(f"{path}: no folder {folder}; clone the project there, or change the line")
    for command in commands:
        if shutil.which(shlex.split(command)[0]) is None:
            raise CodecUnavailable(f"{path}: no program {shlex.split(command)[0]!r} in PATH")
    return codec
