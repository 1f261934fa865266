"""A model on disk: manifest, ONNX graphs, integer tables. Both sides load the same one.

``bundle.json`` names every file with its SHA-256. The *fingerprint*, three bytes in every frame, is derived from the
digests of the files that define the bitstream. The *digest* is derived from all files under ``files``, and an edge
sends it to its cloud. Files under ``auxiliary`` (integer.npz, the entropy model for a GPU) repeat what other files
define. They are verified, but they are part of neither.

A bundle is named by its folder, or by its Hugging Face id ``OWNER/NAME@REVISION``. The revision is a complete commit
id, because a branch or a tag can move. The files land in Hugging Face's own cache and are checked against the digests
in their manifest, like any bundle's.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from aeic.bitstream import MAX_RATES
from aeic.errors import BundleError, RateError, remedy
from aeic.npz import read_npz
from aeic.profiles import SCALE_COUNT
from aeic.runtime import memory
from aeic.tables import Rows

FORMAT = 1
DEFAULT_NAME = "aeic-se-nano"
DECODING = ("tables.npz", "hyper_synthesis.onnx", *(f"context_{index}.onnx" for index in range(4)))
"""What a frame is decoded with. The fingerprint covers at least these."""
REQUIRED = (*DECODING, "analysis.onnx", "hyper_analysis.onnx")
"""Required by both sides. The synthesis is ``synthesis.onnx`` (CPUs), ``weights.safetensors`` (torch), or both; a
bundle without either encodes only."""

MAX_TABLE_BYTES = 64 << 20
"""Limit on the unpacked size of tables.npz; the largest published model needs 3 MB."""

SHARED_FROM = 256
"""Latent channels from which the entropy graphs (``se``, ``me``) are worth more than one thread for one picture."""
_SPIN_MICROSECONDS = "50"

_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})@(?P<revision>[\w./-]{1,100})")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FETCHED = ["bundle.json", "*.onnx", "*.npz", "*.safetensors", "*.md", "*.jsonl"]


@dataclass(frozen=True)
class Rate:
    """One rate point: its number in a frame, its name, and the bits per pixel to expect of it."""

    number: int
    name: str
    bpp: float


@dataclass(frozen=True)
class Tables:
    """The contents of tables.npz. ``gains`` and ``inverse_gains`` (R, M), ``medians`` (Cz,), float32."""

    y: Rows
    z: tuple[Rows, ...]  # one set of Cz rows for each rate
    medians: NDArray[np.float32]
    gains: NDArray[np.float32]
    inverse_gains: NDArray[np.float32]


def default_bundle_path() -> Path:
    """``AEIC_BUNDLE`` from the environment, else models/aeic-se-nano beside the sources or inside the package."""
    named = os.environ.get("AEIC_BUNDLE")
    if named:
        return Path(named)
    package = Path(__file__).resolve().parent
    places = [parent / "models" / DEFAULT_NAME for parent in (package.parent, package)]
    return next((place for place in places if (place / "bundle.json").is_file()), places[0])


def bundle_folder(named: str | Path) -> Path:
    """The folder that ``named`` is, or the one that the bundle of this id was fetched into.

    ``BundleError`` for an id without a whole commit, where huggingface_hub is missing, or where fetching fails.
    """
    found = _ID.fullmatch(str(named))
    if found is None or Path(named).exists():
        return Path(named)
    if not _COMMIT.fullmatch(found["revision"]):
        raise BundleError(
            f"{named} names no commit: give all 40 digits of a commit after the @, so that the bundle cannot change"
        )
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        raise BundleError(f"bundles by id need huggingface_hub: {remedy('hub')}") from None
    try:
        return Path(hub.snapshot_download(found["repository"], revision=found["revision"], allow_patterns=_FETCHED))
    except Exception as error:  # the library's, requests' and the system's errors share no narrower base
        raise BundleError(f"{named} could not be fetched ({error}): check the id, the network and HF_TOKEN") from error


class Bundle:
    """A loaded bundle. Sessions are made when first asked for, and kept; safe to share between threads."""

    def __init__(self, path: Path, manifest: Mapping[str, Any], tables: Tables) -> None:
        """Use :meth:`load`."""
        self.path = path
        self.manifest = manifest
        self.tables = tables
        self.name: str = manifest["name"]
        self.fingerprint: str = manifest["fingerprint"]
        self.channels: int = manifest["latent_channels"]
        self.hyper_channels: int = manifest["hyper_channels"]
        self.default_rate: int = manifest["default_rate"]
        self.rates = tuple(Rate(number, str(r["name"]), float(r["bpp"])) for number, r in enumerate(manifest["rates"]))
        self._sessions: dict[tuple[str, int], onnxruntime.InferenceSession] = {}
        self._lock = Lock()

    @classmethod
    def load(cls, path: str | Path | None = None, verify: bool = True) -> Bundle:
        """Read the bundle in folder ``path`` (default: :func:`default_bundle_path`), or of a Hugging Face id
        ``OWNER/NAME@COMMIT``.

        ``verify`` compares every file with its digest. ``BundleError`` if anything is missing, altered or malformed.
        """
        folder = bundle_folder(path if path is not None else default_bundle_path())
        manifest = _read_manifest(folder)
        if verify:
            _verify(folder, manifest["files"])
        return cls(folder, manifest, _read_tables(folder, manifest))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over the names and digests of all files: 32 bytes."""
        return hashlib.sha256(_lines(self.manifest["files"], self.manifest["files"])).digest()

    @property
    def shares_threads(self) -> bool:
        """Whether one picture's entropy graphs gain from more than one thread."""
        return self.channels >= SHARED_FROM

    def has(self, name: str) -> bool:
        """Whether the bundle holds the file ``name``."""
        return name in self.manifest["files"]

    def auxiliary(self, name: str) -> Path | None:
        """The file ``name`` among the auxiliary ones, its digest verified; ``None`` if it is missing."""
        wanted = self.manifest.get("auxiliary", {}).get(name)
        if wanted is None or not (self.path / name).exists():
            return None
        _verify(self.path, {name: wanted})
        return self.path / name

    def rate(self, wanted: int | str | None) -> Rate:
        """The rate point of a number or a name; the default one for ``None``. ``RateError`` lists the known ones."""
        if wanted is None:
            return self.rates[self.default_rate]
        for rate in self.rates:
            if wanted in (rate.number, rate.name) or str(wanted) == str(rate.number):
                return rate
        known = ", ".join(f"{rate.number} ({rate.name}, {rate.bpp:g} bpp)" for rate in self.rates)
        raise RateError(f"no rate point {wanted!r} in {self.name}: choose one of {known}")

    def session(self, name: str, threads: int = 0) -> onnxruntime.InferenceSession:
        """The ONNX Runtime session of a graph (``analysis`` or ``analysis.onnx``) on the CPU; 0 threads means all."""
        file = name if name.endswith(".onnx") else f"{name}.onnx"
        with self._lock:
            if (file, threads) not in self._sessions:
                if not self.has(file):
                    raise BundleError(f"bundle {self.path} has no {file}: export it again")
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                options.log_severity_level = 3
                memory.share_arena(options)
                # Threads that spin while they wait cost a busy box several times the work itself. The large entropy
                # graphs are hundreds of short nodes: there a short spin bridges the gaps, 15 % faster in all.
                spins = threads != 1 and self.shares_threads
                options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
                if spins:
                    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
                try:
                    session = onnxruntime.InferenceSession(
                        str(self.path / file), options, providers=["CPUExecutionProvider"]
                    )
                except Exception as error:  # ONNX Runtime's own errors share no narrower base
                    raise BundleError(
                        f"{self.path / file} cannot be loaded ({error}): fetch the bundle again"
                    ) from error
                self._sessions[file, threads] = session
            return self._sessions[file, threads]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "bundle.json"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"no bundle at {folder}: give its folder, or set AEIC_BUNDLE") from None
    except (OSError, ValueError, RecursionError) as error:  # the last for JSON that is too deep
        raise BundleError(f"{path} cannot be read ({error}): fetch the bundle again") from error
    try:
        _check_manifest(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path} is malformed ({error!r}): export the bundle again") from error
    return dict(manifest)


def _check_manifest(manifest: dict[str, Any]) -> None:
    if manifest["format"] != FORMAT:
        raise BundleError(f"bundle format {manifest['format']}: this program reads format {FORMAT}, update it")
    files, rates, defining = manifest["files"], manifest["rates"], manifest["defines_bitstream"]
    missing = [name for name in REQUIRED if name not in files]
    _require(not missing, f"files lacks {', '.join(missing)}")
    auxiliary = manifest.get("auxiliary", {})
    _require(all(Path(name).name == name for name in (*files, *auxiliary)), "a file name holds a folder")
    _require(not set(files) & set(auxiliary), "a file is among files and auxiliary")
    _require(set(DECODING) <= set(defining) <= set(files), "defines_bitstream")
    _require(len(defining) == len(set(defining)), "defines_bitstream names a file twice")
    numbers = [manifest[name] for name in ("latent_channels", "hyper_channels", "default_rate")]
    _require(all(type(number) is int for number in numbers), "a number that is not whole")
    _require(1 <= len(rates) <= MAX_RATES and 0 <= manifest["default_rate"] < len(rates), "rates or default_rate")
    _require(4 <= manifest["latent_channels"] <= 4096 and manifest["latent_channels"] % 4 == 0, "latent_channels")
    _require(1 <= manifest["hyper_channels"] <= 4096, "hyper_channels")
    _require(all(isinstance(rate["name"], str) and float(rate["bpp"]) > 0 for rate in rates), "rates")
    made = hashlib.sha256(_lines(defining, files)).hexdigest()[:6]
    _require(manifest["fingerprint"] == made, f"the fingerprint should be {made}")
    _require(isinstance(manifest["name"], str), "name")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _lines(names: Any, files: Mapping[str, str]) -> bytes:
    return "".join(f"{name} {files[name]}\n" for name in sorted(names)).encode()


def _verify(folder: Path, files: Mapping[str, str]) -> None:
    for name, wanted in files.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read ({error.strerror}): fetch the bundle again") from error
        if found != wanted:
            raise BundleError(f"{folder / name} was altered (its SHA-256 differs): fetch the bundle again")


def _read_tables(folder: Path, manifest: Mapping[str, Any]) -> Tables:
    path, rates = folder / "tables.npz", len(manifest["rates"])
    channels, hyper_channels = manifest["latent_channels"], manifest["hyper_channels"]
    try:
        a = read_npz(path, MAX_TABLE_BYTES)
        _require(a["y_lengths"].shape == (SCALE_COUNT,), f"y_lengths needs {SCALE_COUNT} rows")
        _require(a["z_lengths"].shape == a["z_offsets"].shape == (rates, hyper_channels), "z_lengths or z_offsets")
        y = Rows(a["y_lengths"], a["y_offsets"], a["y_freqs"])
        ends = np.cumsum(a["z_lengths"].sum(axis=1, dtype=np.int64))
        _require(ends[-1] == len(a["z_freqs"]), "z_freqs does not fit z_lengths")
        z_freqs = np.split(a["z_freqs"], ends[:-1])
        z = tuple(Rows(*parts) for parts in zip(a["z_lengths"], a["z_offsets"], z_freqs, strict=True))
        floats = [a[name].astype(np.float32) for name in ("z_medians", "gains", "inverse_gains")]
        _require(floats[0].shape == (hyper_channels,), "z_medians")
        _require(floats[1].shape == floats[2].shape == (rates, channels), "gains or inverse_gains")
        _require(all(bool(np.isfinite(part).all()) for part in floats), "numbers that are not finite")
        _require(floats[1].min() > 0 and floats[2].min() > 0, "gains must be positive")
    except BundleError:
        raise
    except Exception as error:  # numpy raises zipfile, OS, key and value errors here
        raise BundleError(f"{path} cannot be read ({error!r}): fetch the bundle again") from error
    return Tables(y, z, *floats)
