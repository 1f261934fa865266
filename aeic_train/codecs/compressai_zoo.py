"""Models of CompressAI's zoo as codecs, from local checkpoint files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aeic_train.codecs.base import CodecUnavailable, Picture


@dataclass(frozen=True)
class Zoo:
    """An architecture of CompressAI's zoo. The setting is the quality, with one checkpoint file for each. Bitstreams
    are real files."""

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
        """Read ``ARCHITECTURE:1=FILE,2=FILE``."""
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
        """Write one byte for the quality, four for the latent size, three for the length of each string but the last,
        and the strings."""
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
