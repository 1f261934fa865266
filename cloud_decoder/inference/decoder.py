"""Frames to pictures, as a library: entropy decoding on CPU threads, then the generator. No store and no queue.

>>> decoder = Decoder.from_bundle(path)                    # doctest: +SKIP
>>> (picture,) = decoder.decode([frame_bytes])             # doctest: +SKIP
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aeic.bundle import DECODING, Bundle
from aeic.errors import BundleError
from aeic.latent_codec import LatentCodec, Latents
from aeic.profiles import LATENT_STRIDE
from aeic_service.errors import ServiceError
from cloud_decoder.errors import DeviceOutOfMemory
from cloud_decoder.inference.backend import (
    EntropyDecoded,
    GeneratorBackend,
    is_out_of_memory,
    out_of_memory_message,
    release_memory,
)
from cloud_decoder.inference.devices import build_generator, choose_device, choose_devices
from cloud_decoder.inference.subprocess_backend import SubprocessGenerator
from cloud_decoder.tiling import Floats, Picture, Tile, TileAssembler

log = logging.getLogger(__name__)

Begun: TypeAlias = tuple[Sequence[tuple[TileAssembler, Tile]], Callable[[], NDArray[Any]]]
"""A batch of tiles, and what waits for its pictures."""
GPU_BATCH = 8
CPU_BATCH = 1
"""On a CPU a batch takes as long per pixel as one picture (measured), so a larger one would only delay its first."""
MAX_BATCH_PIXELS = 4 * 2**20


@dataclass(frozen=True)
class DecoderSettings:
    """Limits of a decoder; 0 takes the default that suits the machine and the device."""

    threads: int = 0
    """CPU threads of one inference; 0 uses all cores."""
    entropy_workers: int = 0
    """Frames entropy-decoded at once; 0 uses half the cores."""
    max_batch: int = 0
    """Pictures or tiles in one batch; 0 takes :data:`GPU_BATCH` or :data:`CPU_BATCH`."""
    max_batch_pixels: int = MAX_BATCH_PIXELS
    isolate: bool = False
    """Run the generator in a separate process."""
    batch_seconds: float = 120.0
    """An isolated generator that takes longer for a batch is killed."""
    entropy: Literal["auto", "cpu", "device", "triton"] = "auto"
    """Where an isolated generator's frames are entropy-decoded: ``auto`` is a GPU if there is one. ``triton`` is
    ``device`` with Triton's kernels."""
    official_tiling: bool = False
    """Large pictures are decoded whole, in the tiles of the research code. Not with ``isolate``: for one's own use."""
    entropy_check_frames: int = 256
    """Every Nth frame that a device has entropy-decoded is checked on the CPU; 0 checks none."""


class Decoder:
    """The decoder of one bundle. Entropy decoding may run on many threads, synthesis on one for each generator.

    A *lane* is the number of a generator. There are several if there are several GPUs.
    """

    def __init__(
        self,
        bundle: Bundle,
        generator: GeneratorBackend,
        *more: GeneratorBackend,
        device: str = "onnx",
        settings: DecoderSettings = DecoderSettings(),
    ) -> None:
        cores = settings.threads or os.cpu_count() or 1
        self.bundle = bundle
        self.device = device
        self.lanes = 1 + len(more)
        self.entropy_workers = settings.entropy_workers or max(1, cores // 2)
        self.max_batch = settings.max_batch or (CPU_BATCH if self.shares_cpu else GPU_BATCH)
        self.max_batch_pixels = settings.max_batch_pixels
        self._whole = settings.official_tiling
        self._generator = generator
        self._generators = (generator, *more)
        self._warm = [False] * self.lanes
        self._entropy_threads = max(1, cores // self.entropy_workers)
        self._codec = LatentCodec(bundle, self._entropy_threads)
        self._entropy_turn = count()

    @classmethod
    def from_bundle(
        cls, path: str | Path | None = None, device: str = "auto", settings: DecoderSettings = DecoderSettings()
    ) -> Decoder:
        """The decoder of the bundle in ``path``, or of the default bundle, on a device or several, with commas.

        ``auto`` takes the CPU where a GPU does not work. ``BundleError`` for a bundle that is missing or altered,
        ``ValueError`` for an unknown device.
        """
        bundle = Bundle.load(path)
        has_graph = bundle.has("synthesis.onnx")
        chosen = choose_devices(device, has_graph)
        if len(chosen) > 1 and not settings.isolate:
            raise ValueError(f"several devices ({device}) need decoder processes: set AEIC_CLOUD_ISOLATE=1")
        try:
            generators = _open(bundle, chosen, settings)
        except BundleError:
            raise
        except Exception as error:  # such as "no kernel image": this build of torch has no code for the GPU
            if device != "auto" or chosen != ["cuda"]:
                raise
            log.warning("the GPU does not work and the CPU takes its place: %s", error)
            chosen = [choose_device(device, has_graph, gpu=False)]
            generators = _open(bundle, chosen, settings)
        return cls(bundle, *generators, device=",".join(chosen), settings=settings)

    @property
    def shares_cpu(self) -> bool:
        """Whether synthesis runs on the same cores as entropy decoding, so that doing both at once gains nothing."""
        return not self.device.startswith("cuda") and self.lanes == 1

    @property
    def entropy_batch(self) -> int:
        """Frames to give to :meth:`entropy_decode_many` at once: 1 while the CPU decodes them."""
        return GPU_BATCH if self._entropy_lanes else 1

    @property
    def warnings(self) -> list[str]:
        """What an operator should know although decoding works; empty where all is well."""
        return [warning for one in self._generators if isinstance(one, SubprocessGenerator) for warning in one.warnings]

    @property
    def _entropy_lanes(self) -> list[SubprocessGenerator]:
        return [one for one in self._generators if isinstance(one, SubprocessGenerator) and one.entropy_on_device]

    def decode(self, frames: Sequence[bytes]) -> list[Picture]:
        """Whole frames to pictures (H, W, 3) uint8, in order. ``BitstreamError`` for a frame that cannot be decoded."""
        if isinstance(frames, bytes | bytearray | memoryview | str):  # one frame, not a list
            raise TypeError("decode takes a list of frames: decode([frame])")
        if len(frames) == 1 or self.entropy_workers == 1:
            latents = [self.entropy_decode(data) for data in frames]
        else:
            with ThreadPoolExecutor(self.entropy_workers, "entropy") as threads:
                latents = list(threads.map(self.entropy_decode, frames))
        return self.synthesise(latents)

    def entropy_decode(self, data: bytes) -> Latents:
        """One whole frame to its latents. Everything that a hostile frame can claim is checked."""
        return self._codec.decode(data)

    def entropy_decode_many(self, frames: Sequence[bytes]) -> list[EntropyDecoded | Exception]:
        """Whole frames to latents, together and on a GPU if there is one, else one by one; or the error of each."""
        if lanes := self._entropy_lanes:
            decoded = lanes[next(self._entropy_turn) % len(lanes)].entropy_decode(frames)
            if decoded is not None:
                return list(decoded)
        outcomes: list[EntropyDecoded | Exception] = []
        for data in frames:
            try:
                latents = self.entropy_decode(data)
                outcomes.append(EntropyDecoded(latents.y_hat, latents.digest))
            except Exception as error:
                outcomes.append(error)
        return outcomes

    def synthesise(self, latents: Sequence[Latents]) -> list[Picture]:
        """Latents to pictures (H, W, 3) uint8, in order; batched by shape, large ones in tiles."""
        assemblers = [TileAssembler(one.y_hat, one.frame, whole=self._whole) for one in latents]
        begun: deque[Begun] = deque()  # at most one besides the batch that is being computed
        while any(not assembler.done for assembler in assemblers):
            waiting: dict[tuple[int, int], list[tuple[TileAssembler, Tile]]] = defaultdict(list)
            for assembler in assemblers:
                waiting[assembler.shape] += [(assembler, tile) for tile in assembler.tiles()]
            for (height, width), tiles in waiting.items():
                size = min(self.max_batch, max(1, self.max_batch_pixels // (height * width * LATENT_STRIDE**2)))
                for start in range(0, len(tiles), size):
                    batch = tiles[start : start + size]
                    whole = all(assembler.whole for assembler, _ in batch)
                    fetch = self._start([assembler.cut(tile) for assembler, tile in batch], whole, lane=0)
                    begun.append((batch, fetch))
                    if len(begun) > self._generator.overlaps:
                        _put(begun.popleft())
            while begun:
                _put(begun.popleft())
        return [assembler.finish() for assembler in assemblers]

    def run(self, latents: Sequence[Floats], *, whole: bool = False, lane: int = 0) -> NDArray[Any]:
        """One batch of latents (M, h, w), all of one shape, to (N, 3, 32 h, 32 w) float32.

        The result is valid until the next call on that lane.

        With ``whole`` the pictures are complete, and the result is (N, 32 h, 32 w, 3) uint8.

        ``DeviceOutOfMemory`` if too many; ``DecoderDied`` where the generator's process did not survive it.
        """
        return self._start(latents, whole, lane)()

    def _start(self, latents: Sequence[Floats], whole: bool, lane: int) -> Callable[[], NDArray[Any]]:
        """:meth:`run` as far as its result needs the device; what is returned waits for the result."""
        try:
            return self._generators[lane].start(np.stack(latents), whole=whole)
        except ServiceError:  # from the generator's own process, with its message
            raise
        except Exception as error:  # each runtime has its own class for running out of memory
            if not is_out_of_memory(error):
                raise
            message = out_of_memory_message(error, (len(latents), *latents[0].shape), self.device)
        # Outside the handler: the exception's traceback would keep the tensors alive.
        release_memory(self.device)
        raise DeviceOutOfMemory(message)

    def warm_up(self, lane: int = 0) -> None:
        """Prepare a lane and run it once, so that the first frame is not slower. Later calls do nothing.

        Too little memory is no error here: batches become smaller, and a picture that does not fit is refused later.
        """
        if self._warm[lane]:
            return
        for name in DECODING:  # loading one later could fail for want of files or memory, in the middle of a frame
            if name.endswith(".onnx") and self.bundle.has(name):
                self.bundle.session(name, self._entropy_threads)
        try:
            room = self._generators[lane].warm_up(self.max_batch, self.max_batch_pixels)
            if room is not None and room < self.max_batch_pixels:
                log.warning("batches of at most %d pixels: %s has no memory for more", room, self.device)
                self.max_batch_pixels = room
            self.run([np.zeros((self.bundle.channels, 4, 4), np.float32)], whole=True, lane=lane)
        except (DeviceOutOfMemory, MemoryError) as error:
            log.warning("%s was not warmed up: %s", self.device, error)
        self._warm[lane] = True
        log.info("bundle %s is decoded on %s by %s", self.bundle.fingerprint, self.device, self.runtime)

    @property
    def runtime(self) -> str:
        """The library that synthesises and what it multiplies in; final once the decoder is warm."""
        return self._generator.runtime

    def revive(self, lane: int = 0) -> None:
        """Warm a lane up again after a failure: raises what keeps the generator from working."""
        self._warm[lane] = False
        self.warm_up(lane)

    @property
    def problem(self) -> str:
        """Why no batch could begin now; empty if one could on any lane."""
        problems = [generator.problem for generator in self._generators]
        return problems[0] if all(problems) else ""

    def parts(self, lane: int = 0) -> dict[str, float]:
        """Seconds of the lane's last batch by part of the network, where the generator measures them."""
        return self._generators[lane].parts

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of device memory by kind (``allocated``, ``reserved``), of all lanes together; empty on a CPU."""
        total: Counter[str] = Counter()
        for generator in self._generators:
            total.update(generator.memory)
        return dict(total)

    def take_counts(self) -> dict[str, int]:
        """Events since the last call, by the names in :data:`~cloud_decoder.inference.backend.COUNTS`."""
        total: Counter[str] = Counter()
        for generator in self._generators:
            total.update(generator.take_counts())
        return dict(total)

    def close(self) -> None:
        """Release the generators' processes and memory."""
        for generator in self._generators:
            generator.close()


def _put(begun: Begun) -> None:
    batch, fetch = begun
    for (assembler, tile), image in zip(batch, fetch(), strict=True):
        assembler.put(tile, image)


def _open(bundle: Bundle, devices: Sequence[str], settings: DecoderSettings) -> list[GeneratorBackend]:
    """A generator for each device; all or none."""
    generators: list[GeneratorBackend] = []
    try:
        for one in devices:
            if settings.isolate:
                on_gpu = settings.entropy == "auto" and one.startswith("cuda")
                on_device = on_gpu or settings.entropy in ("device", "triton")
                kernels: Literal["torch", "triton"] = "triton" if settings.entropy == "triton" else "torch"
                generators.append(
                    SubprocessGenerator(
                        bundle.path,
                        one,
                        settings.threads,
                        batch_seconds=settings.batch_seconds,
                        entropy=kernels if on_device else None,
                        check_every=settings.entropy_check_frames,
                    )
                )
            else:
                generators.append(
                    build_generator(bundle.path, one, settings.threads, official_tiling=settings.official_tiling)
                )
    except BaseException:
        for generator in generators:
            generator.close()
        raise
    return generators
