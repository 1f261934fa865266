"""The generator on whichever runtime is fastest on this processor, found when it is warmed up."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aeic.runtime.fastest import Choice, Run, choose, decibels
from cloud_decoder.inference.backend import GeneratorBackend
from cloud_decoder.inference.onnx_backend import OnnxGenerator

SAME_PSNR = 35.0
"""A picture as far as this from float32's, in dB, is the same one for every viewer. bfloat16 reaches 60 and more."""
_LATENTS = 8, 12  # the sample: a picture of 256x384

Build = Callable[[Path, str, int], GeneratorBackend]


class FastestGenerator(GeneratorBackend):
    """ONNX Runtime, until :meth:`warm_up` has measured it beside the other runtimes that are installed here.

    ``build(bundle, device, threads)`` makes the generator of a device.
    """

    def __init__(self, bundle: Path, threads: int, build: Build) -> None:
        self._arguments = bundle, threads
        self._build = build
        onnx = OnnxGenerator(bundle, threads)
        self._channels = onnx.channels
        self._generator: GeneratorBackend = onnx
        self.choice: Choice | None = None

    @property
    def runtime(self) -> str:
        """The chosen runtime."""
        return self._generator.runtime

    def __call__(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, M, h, w) float32 -> (N, 3, 32 h, 32 w) float32."""
        return self._generator(y_hat)

    def pictures(self, y_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(N, M, h, w) float32 -> (N, 32 h, 32 w, 3) uint8."""
        return self._generator.pictures(y_hat)

    def warm_up(self, max_batch: int, max_pixels: int | None = None) -> int | None:
        """Choose the runtime, once, and warm it up."""
        if self.choice is None:
            self._choose(max_batch)
        return self._generator.warm_up(max_batch, max_pixels)

    def take_counts(self) -> dict[str, int]:
        """Those of the chosen runtime."""
        return self._generator.take_counts()

    def _choose(self, max_batch: int) -> None:
        bundle, threads = self._arguments
        loaded: dict[str, GeneratorBackend] = {"onnx": self._generator}

        def loader(device: str) -> Callable[[], Run]:
            def load() -> Run:
                if device not in loaded:
                    generator = self._build(bundle, device, threads)
                    generator.warm_up(max_batch)
                    loaded[device] = generator
                return loaded[device]

            return load

        sample = np.random.default_rng(0).standard_normal((1, self._channels, *_LATENTS)).astype(np.float32)
        self.choice = choose({device: loader(device) for device in ("onnx", *installed())}, sample, _difference)
        for device, generator in loaded.items():
            if device != self.choice.name:
                generator.close()
        self._generator = loaded[self.choice.name]

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of the last batch by part of the network."""
        return self._generator.parts

    def release(self) -> None:
        """Of the chosen runtime."""
        self._generator.release()

    def close(self) -> None:
        """Release memory."""
        self._generator.close()


def installed() -> list[str]:
    """The devices beside ``onnx`` that can be tried on a CPU here."""
    found = {"openvino": "openvino", "cpu": "torch"}
    return [device for device, module in found.items() if find_spec(module) is not None]


def _difference(got: NDArray[np.float32], want: NDArray[np.float32]) -> str | None:
    psnr = decibels(got.clip(-1, 1), want.clip(-1, 1))
    return None if psnr >= SAME_PSNR else f"its picture is only {psnr:.1f} dB from float32's"
