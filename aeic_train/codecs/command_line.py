"""Any program as a codec, by the command templates of a TOML file."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
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
    are split before names are filled in and no shell sees them. Both templates may use {width} and {height}.
    """

    name: str
    settings: Sequence[int | float | str]
    encoder: str
    decoder: str
    suffix: str = ".bin"

    @classmethod
    def from_file(cls, path: Path) -> Commands:
        try:
            table = tomllib.loads(path.read_text())
            codec = cls(table["name"], table["settings"], table["encode"], table["decode"], table.get("suffix", ".bin"))
        except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
            raise CodecUnavailable(f"{path}: {error}; it needs name, settings, encode and decode") from error
        for command in (codec.encoder, codec.decoder):
            if shutil.which(shlex.split(command)[0]) is None:
                raise CodecUnavailable(f"{path}: no program {shlex.split(command)[0]!r} in PATH")
        return codec

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
        run_program([word.format(**values) for word in shlex.split(template)], self.name)
        if not Path(str(values["output"])).is_file():
            raise CodecFailed(f"{self.name}: {template!r} ended well but wrote no {{output}}")
