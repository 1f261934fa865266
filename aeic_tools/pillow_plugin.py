"""Pillow opens and saves .aeic: ``import aeic_tools.pillow_plugin``, then ``Image.open`` and ``Image.save`` as usual.

Opening reads only the header. The model is loaded, and the frame decoded, when the pixels are first needed.
``save(..., rate=, max_bytes=, bundle=)`` encodes. Without ``bundle``, both use AEIC_BUNDLE or else the shipped bundle.
Loading needs the extra ``cloud-cpu`` and saving ``edge-cpu``; an error names a missing one.
"""

from __future__ import annotations

import functools
import importlib
import threading
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile

from aeic.bitstream import HEADER_BYTES, MAGIC, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, Frame, header_bytes
from aeic.errors import AeicError, remedy
from aeic.pixels import to_rgb

FORMAT, SUFFIX, MIME = "AEIC", ".aeic", "image/x-aeic"
_loading = threading.Lock()


class AeicImageFile(ImageFile.ImageFile):
    """One frame. ``info`` has bpp, rate and fingerprint; ``load()`` raises ``OSError`` if it is damaged."""

    format = FORMAT
    format_description = "AEIC extreme image compression"
    bundle: str | Path | None = None
    """Model to decode with; set it between ``open`` and ``load`` if it is not the default."""

    def _open(self) -> None:
        assert self.fp is not None
        start = self.fp.tell()
        header = self.fp.read(HEADER_BYTES + 1)
        header += self.fp.read(header_bytes(header) - HEADER_BYTES)
        try:
            frame = Frame.parse(header)
        except (AeicError, ValueError) as error:
            raise SyntaxError(str(error)) from None
        self.fp.seek(start)
        self._size = frame.width, frame.height
        self._mode = "RGB"
        self.info = {"rate": frame.rate, "fingerprint": frame.fingerprint}
        self.tile = []

    def load(self) -> Any:
        """Read and decode, once."""
        if self.fp is not None and self._im is None:
            data = self.fp.read(MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES + 1)
            try:
                (picture,) = _decoder(self.bundle).decode([data])
            except AeicError as error:
                raise OSError(f"cannot decode this AEIC frame: {error}") from error
            self.info["bpp"] = 8 * len(data) / (self.width * self.height)
            self.im = Image.fromarray(picture).im
            if self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return super().load()


def _accept(prefix: bytes) -> bool:
    return prefix[:1] == bytes([MAGIC])


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    """Called by ``Image.save``. The pixels are made upright, over white, 8-bit: a frame holds nothing else."""
    asked = image.encoderinfo
    pixels = to_rgb(image.copy())
    try:
        encoded = _encoder(asked.get("bundle")).encode(pixels, rate=asked.get("rate"), max_bytes=asked.get("max_bytes"))
    except AeicError as error:
        raise OSError(f"cannot write this as AEIC: {error}") from error
    file.write(encoded.data)


def _decoder(bundle: str | Path | None) -> Any:
    with _loading:
        return _loaded("cloud_decoder.inference.decoder", "Decoder", "cloud-cpu", bundle)


def _encoder(bundle: str | Path | None) -> Any:
    with _loading:
        return _loaded("edge_encoder.encoding.encoder", "Encoder", "edge-cpu", bundle)


@functools.lru_cache(maxsize=4)
def _loaded(module: str, name: str, extra: str, bundle: str | Path | None) -> Any:
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise OSError(f"{error.name} is not installed: {remedy(extra)}") from error
    return found.from_bundle(bundle)


def register() -> None:
    """Make the format known to Pillow; importing this module does."""
    Image.register_open(FORMAT, AeicImageFile, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, SUFFIX)
    Image.register_mime(FORMAT, MIME)


register()
