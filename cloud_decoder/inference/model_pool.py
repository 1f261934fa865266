"""The bundles that this cloud decodes, by fingerprint, and the decoders of those in use, within a memory limit.

A bundle is loaded when its first frame is decoded, and stays until its memory is needed. The least recently used one is
unloaded first, and none while it is in use. All rate points of a bundle share one decoder. The size of a bundle is that
of the files that its decoder reads.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock

from aeic.bundle import Bundle
from aeic.errors import BundleError, WrongModel
from cloud_decoder.errors import ModelUnavailable
from cloud_decoder.inference.decoder import Decoder

log = logging.getLogger(__name__)

BROKEN_SECONDS = 60.0
"""A bundle that could not be loaded is tried again after this long."""


class ModelPool:
    """The pool of ``bundles``, of which the first one is the default. Safe from several threads.

    ``load`` makes the decoder of a bundle; ``max_bytes`` 0 keeps everything loaded. ``BundleError`` for two bundles of
    one fingerprint, and for a bundle that alone is over the limit.
    """

    def __init__(self, bundles: Sequence[Bundle], load: Callable[[Path], Decoder], max_bytes: int = 0) -> None:
        self.default = bundles[0]
        self.bundles: dict[str, Bundle] = {}
        self.max_bytes = max_bytes
        self.on_load: Callable[[float], None] = lambda seconds: None
        """Called with the seconds that each load took."""
        self._load = load
        self._decoders: OrderedDict[str, Decoder] = OrderedDict()  # least recently used first
        self._in_use: dict[str, int] = {}
        self._loading: dict[str, Lock] = {}
        self._broken: dict[str, float] = {}  # when it could not be loaded, monotonic seconds
        self._changed = Condition()
        self._waiting = (
            0  # threads that wait for memory; no other takes a loaded decoder before them, so that they cannot starve
        )
        self._reserved: dict[str, int] = {}  # fingerprint -> bytes, of what is loaded or being loaded
        for bundle in bundles:
            if bundle.fingerprint in self.bundles:
                other = self.bundles[bundle.fingerprint]
                raise BundleError(f"{bundle.path} and {other.path} have the same fingerprint: give only one of them")
            if max_bytes and size_of(bundle) > max_bytes:
                raise BundleError(f"{bundle.path} needs {size_of(bundle)} bytes: raise AEIC_CLOUD_MODEL_BYTES")
            self.bundles[bundle.fingerprint] = bundle
            self._loading[bundle.fingerprint] = Lock()

    @classmethod
    def of(cls, decoder: Decoder) -> ModelPool:
        """A pool of one decoder that is loaded already."""

        def never(path: Path) -> Decoder:
            raise AssertionError(f"{path} is loaded already")

        model_pool = cls([decoder.bundle], never)
        model_pool._decoders[decoder.bundle.fingerprint] = decoder
        return model_pool

    def first(self) -> Decoder:
        """The default bundle's decoder, loaded if necessary. Unlike :meth:`acquire`, raises the original error."""
        with self._changed:
            if self.default.fingerprint not in self._decoders:
                self._make_room(self.default.fingerprint)
                self._fetch(self.default.fingerprint)
            return self._decoders[self.default.fingerprint]

    def bundle(self, fingerprint: str) -> Bundle:
        """The bundle of that fingerprint. ``WrongModel`` names the known ones."""
        found = self.bundles.get(fingerprint)
        if found is None:
            known = ", ".join(f"{one.fingerprint} ({one.name})" for one in self.bundles.values())
            raise WrongModel(
                f"the frame was made with bundle {fingerprint}, this cloud decodes {known}: encode with that one"
            )
        return found

    def knows_bundle(self, digest: bytes) -> bool:
        """Whether this pool has the bundle of that digest, which an edge names when it connects."""
        return any(bundle.digest == digest for bundle in self.bundles.values())

    def loaded(self, fingerprint: str) -> bool:
        """Whether its decoder is in memory."""
        return fingerprint in self._decoders

    def usable(self, fingerprint: str) -> bool:
        """False for :data:`BROKEN_SECONDS` after a bundle could not be loaded."""
        return time.monotonic() - self._broken.get(fingerprint, -math.inf) > BROKEN_SECONDS

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the bundles in memory, as the limit counts them."""
        with self._changed:
            return sum(size_of(self.bundles[fingerprint]) for fingerprint in self._decoders)

    @property
    def warnings(self) -> list[str]:
        """What an operator should know of the decoders in memory; empty where all is well."""
        with self._changed:
            return [warning for decoder in self._decoders.values() for warning in decoder.warnings]

    @property
    def entropy_batch(self) -> int:
        """Frames that the decoders in memory take at once for entropy decoding: 1 without a GPU."""
        with self._changed:
            return max((decoder.entropy_batch for decoder in self._decoders.values()), default=1)

    @property
    def problem(self) -> str:
        """Why a loaded decoder could not begin a batch now; empty where all could."""
        with self._changed:
            return next((decoder.problem for decoder in self._decoders.values() if decoder.problem), "")

    @contextmanager
    def acquire(self, fingerprint: str) -> Iterator[Decoder]:
        """The decoder of a bundle for as long as the block runs, loaded first if it is not in memory.

        ``ModelUnavailable`` where loading fails. Blocks while the decoders in use fill the limit. The caller must not
        hold another decoder, or two callers could block each other.
        """
        with self._loading[fingerprint]:
            with self._changed:
                while self._waiting:
                    self._changed.wait()
                decoder = self._decoders.get(fingerprint)
                if decoder is None:
                    self._make_room(fingerprint)
                else:
                    self._decoders.move_to_end(fingerprint)
                self._in_use[fingerprint] = self._in_use.get(fingerprint, 0) + 1
            try:
                decoder = decoder or self._fetch(fingerprint)
            except Exception as error:
                self._broken[fingerprint] = time.monotonic()
                self._return(fingerprint)
                log.error("bundle %s cannot be loaded", fingerprint, exc_info=error)
                raise ModelUnavailable(
                    f"bundle {fingerprint} cannot be loaded ({type(error).__name__}); the log says why",
                    retry_after=BROKEN_SECONDS,
                ) from error
        try:
            yield decoder
        finally:
            self._return(fingerprint)

    def close(self) -> None:
        """Unload everything. No decoder may be in use."""
        with self._changed:
            decoders, self._decoders = list(self._decoders.values()), OrderedDict()
            self._reserved.clear()
        for decoder in decoders:
            decoder.close()

    def _fetch(self, fingerprint: str) -> Decoder:
        started = time.monotonic()
        decoder = self._load(self.bundles[fingerprint].path)
        if decoder.bundle.fingerprint != fingerprint:
            decoder.close()
            raise BundleError(f"{decoder.bundle.path} was replaced while the service ran: restart the service")
        seconds = time.monotonic() - started
        log.info("loaded bundle %s (%s) in %.1f s", fingerprint, decoder.bundle.name, seconds)
        with self._changed:
            self._decoders[fingerprint] = decoder
        self.on_load(seconds)
        return decoder

    def _make_room(self, fingerprint: str) -> None:
        """Reserve memory for a bundle: unload idle ones, least recently used first, and wait for those in use."""
        size = size_of(self.bundles[fingerprint])
        while self.max_bytes and sum(self._reserved.values()) + size > self.max_bytes:
            idle = next((one for one in self._decoders if not self._in_use.get(one)), None)
            if idle is None:
                self._waiting += 1
                self._changed.wait()
                self._waiting -= 1
                self._changed.notify_all()
                continue
            log.info("unloading bundle %s to make room for %s", idle, fingerprint)
            decoder = self._decoders.pop(idle)
            del self._reserved[idle]
            decoder.close()
        self._reserved[fingerprint] = size

    def _return(self, fingerprint: str) -> None:
        with self._changed:
            self._in_use[fingerprint] -= 1
            if not self._in_use[fingerprint] and fingerprint not in self._decoders:
                self._reserved.pop(fingerprint, None)  # loading has failed
            self._changed.notify_all()


def size_of(bundle: Bundle) -> int:
    """Bytes of the files that decoding reads.

    These are the entropy graphs, and the weights or the graph of the synthesis, whichever is larger.
    """
    names = [name for name in bundle.manifest["files"] if name.startswith(("context_", "hyper_synthesis", "tables"))]
    heavy = [name for name in ("synthesis.onnx", "weights.safetensors") if bundle.has(name)]
    return sum(_size(bundle.path / name) for name in names) + max((_size(bundle.path / n) for n in heavy), default=0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # loading it reports the error
