"""Decodes frames here instead of in the cloud: a client then fetches 1-2 kB instead of a picture of several hundred.

Needs the extra ``cloud-cpu`` and the model bundle with which the frames were made; the package has the default one.

>>> from aeic_client import Client                                    # doctest: +SKIP
>>> from aeic_client.local import LocalDecoder                        # doctest: +SKIP
>>> with Client("http://127.0.0.1:8081") as cloud, LocalDecoder() as decoder:    # doctest: +SKIP
...     picture = decoder.picture(cloud.bitstream(id), "webp")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aeic.errors import AeicError, remedy

if TYPE_CHECKING:
    from cloud_decoder.tiling import Picture


class DecoderMissing(AeicError):
    """The packages that decode are not installed."""


class LocalDecoder:
    """The decoder of one bundle, by default the one that ships. Not safe from several threads.

    ``threads`` of the CPU are used, by default all. ``DecoderMissing`` without the extra, ``BundleError`` for a bundle
    that is missing or altered.
    """

    def __init__(self, bundle: str | Path | None = None, threads: int = 0) -> None:
        with _decoder_installed():
            from cloud_decoder.inference.decoder import Decoder, DecoderSettings

            self._decoder = Decoder.from_bundle(bundle, "onnx", DecoderSettings(threads=threads))

    def __enter__(self) -> LocalDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self._decoder.close()

    def decode(self, bitstream: bytes) -> Picture:
        """The picture of an .aeic file: (H, W, 3) uint8, sRGB.

        ``BitstreamError`` where it is damaged, ``WrongModel`` where another bundle made it.
        """
        (picture,) = self._decoder.decode([bitstream])
        return picture

    def picture(self, bitstream: bytes, format: str = "png", width: int | None = None) -> bytes:
        """The same as a file in PNG, WebP, JPEG or AVIF, not wider than ``width`` pixels."""
        from cloud_decoder.images import formats

        return formats.encode(self.decode(bitstream), formats.known_format(format), width)


@contextmanager
def _decoder_installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise DecoderMissing(
            f"{error.name} is not installed, which decoding here needs: {remedy('cloud-cpu')}"
        ) from error
