"""Frames to pictures, as a library: entropy decoding on CPU threads, then the generator. Knows no store and no queue.

>>> decoder = Decoder.from_bundle(path)                    # doctest: +SKIP
>>> (picture,) = decoder.decode([frame_bytes])             # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeic.bundle import Bundle
from aeic.latent_codec import LatentCodec, Latents
from aeic.profiles import LATENT_STRIDE
from aeic_service.errors import ServiceError
from cloud_decoder.errors import DeviceOutOfMemory
from cloud_decoder.inference.backend import (
    Generator,
    build_generator,
    choose_device,
    is_out_of_memory,
    memory_words,
    pictures_of,
    release_memory,
)
from cloud_decoder.inference.subprocess_backend import RemoteGenerator
from cloud_decoder.tiling import Floats, Picture, Tile, TileAssembler

GPU_BATCH = 8
CPU_BATCH = 1
"""On a CPU a batch takes as long per pixel as one picture (measured), so it would only make everybody wait."""
MAX_BATCH_PIXELS = 4 * 2**20


class Decoder:
    """The decoder of one bundle on one device. Entropy decoding may run on many threads, synthesis on one at a time."""

    def __init__(
        self,
        bundle: Bundle,
        generator: Generator,
        *,
        device: str = "onnx",
        threads: int = 0,
        entropy_workers: int = 0,
        max_batch: int = 0,
        max_batch_pixels: int = MAX_BATCH_PIXELS,
    ) -> None:
        cores = threads or os.cpu_count() or 1
        self.bundle = bundle
        self.device = device
        self.entropy_workers = entropy_workers or max(1, cores // 2)
        self.max_batch = max_batch or (CPU_BATCH if self.shares_cpu else GPU_BATCH)
        self.max_batch_pixels = max_batch_pixels
        self._generator = generator
        self._warm = False
        self._codec = LatentCodec(bundle, max(1, cores // self.entropy_workers))

    @classmethod
    def from_bundle(
        cls,
        path: str | Path | None = None,
        device: str = "auto",
        threads: int = 0,
        *,
        entropy_workers: int = 0,
        max_batch: int = 0,
        max_batch_pixels: int = MAX_BATCH_PIXELS,
        isolate: bool = False,
        batch_seconds: float = 120.0,
    ) -> Decoder:
        """The decoder of the bundle in ``path``, or of the default one.

        ``threads`` 0 takes all cores, ``entropy_workers`` 0 half of them, ``max_batch`` 0 what suits the device. With
        ``isolate`` the generator runs in a process of its own, which is killed when a batch takes ``batch_seconds``.
        ``BundleError`` for a bundle that is missing or altered, ``ValueError`` for an unknown device.
        """
        bundle = Bundle.load(path)
        chosen = choose_device(device, bundle.has("synthesis.onnx"))
        generator = (
            RemoteGenerator(bundle.path, chosen, threads, batch_seconds=batch_seconds)
            if isolate
            else build_generator(bundle.path, chosen, threads)
        )
        return cls(
            bundle,
            generator,
            device=chosen,
            threads=threads,
            entropy_workers=entropy_workers,
            max_batch=max_batch,
            max_batch_pixels=max_batch_pixels,
        )

    @property
    def shares_cpu(self) -> bool:
        """Whether synthesis runs on the same cores as entropy decoding, so that doing both at once gains nothing."""
        return not self.device.startswith("cuda")

    def decode(self, frames: Sequence[bytes]) -> list[Picture]:
        """Whole frames to pictures (H, W, 3) uint8, in order. ``BitstreamError`` for a frame that cannot be decoded."""
        if isinstance(frames, bytes | bytearray | memoryview | str):  # its bytes would be taken for frames, one by one
            raise TypeError("decode takes a list of frames: decode([frame])")
        if len(frames) == 1 or self.entropy_workers == 1:
            latents = [self.entropy_decode(data) for data in frames]
        else:
            with ThreadPoolExecutor(self.entropy_workers, "entropy") as threads:
                latents = list(threads.map(self.entropy_decode, frames))
        return self.synthesise(latents)

    def entropy_decode(self, data: bytes) -> Latents:
        """One whole frame to its latents; checks everything a hostile frame can claim."""
        return self._codec.decode(data)

    def synthesise(self, latents: Sequence[Latents]) -> list[Picture]:
        """Latents to pictures (H, W, 3) uint8, in order; batched by shape, large ones in tiles."""
        mosaics = [TileAssembler(one.y_hat, one.frame) for one in latents]
        while any(not assembler.done for assembler in mosaics):
            waiting: dict[tuple[int, int], list[tuple[TileAssembler, Tile]]] = defaultdict(list)
            for assembler in mosaics:
                waiting[assembler.shape] += [(assembler, tile) for tile in assembler.tiles()]
            for (height, width), tiles in waiting.items():
                size = min(self.max_batch, max(1, self.max_batch_pixels // (height * width * LATENT_STRIDE**2)))
                for start in range(0, len(tiles), size):
                    batch = tiles[start : start + size]
                    whole = all(assembler.whole for assembler, _ in batch)
                    images = self.run([m.cut(t) for m, t in batch], whole=whole)
                    for (assembler, tile), image in zip(batch, images, strict=True):
                        assembler.put(tile, image)
        return [assembler.picture for assembler in mosaics]

    def run(self, latents: Sequence[Floats], *, whole: bool = False) -> NDArray[Any]:
        """One batch of latents (M, h, w), all of one shape, to (N, 3, 32 h, 32 w) float32, valid until the next call.

        With ``whole`` nothing is to be blended, and the result is (N, 32 h, 32 w, 3) uint8.

        ``DeviceOutOfMemory`` if too many; ``DecoderDied`` where the generator's process did not survive it.
        """
        try:
            y_hat = np.stack(latents)
            return pictures_of(self._generator, y_hat) if whole else self._generator(y_hat)
        except ServiceError:  # said already, by the generator's own process
            raise
        except Exception as error:  # every runtime has its own class for it
            if not is_out_of_memory(error):
                raise
            message = memory_words(error, (len(latents), *latents[0].shape), self.device)
        # Outside the handler: the exception's traceback would keep the tensors alive.
        release_memory(self.device)
        raise DeviceOutOfMemory(message)

    def warm_up(self) -> None:
        """Get the generator ready and run it once, so that the first frame pays for no set-up. Once; then nothing."""
        if not self._warm:
            prepare = getattr(self._generator, "warm_up", None)
            if prepare is not None:
                prepare(self.max_batch)
            self.run([np.zeros((self.bundle.channels, 4, 4), np.float32)], whole=True)
            self._warm = True

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of the last batch by part of the network, where the generator can tell them apart."""
        return dict(getattr(self._generator, "parts", {}))

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of device memory by kind (``allocated``, ``reserved``), as of the last batch; empty on a CPU."""
        return dict(getattr(self._generator, "memory", {}))

    def close(self) -> None:
        """Give the generator's process and memory back."""
        close = getattr(self._generator, "close", None)
        if close is not None:
            close()
