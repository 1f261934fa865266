"""From a picture to a frame: execution providers, analysis, entropy coding, link adaptation."""

from typing import Literal

ProviderChoice = Literal["auto", "cpu", "openvino", "cuda", "tensorrt"]
"""Execution providers that a setting may ask for. Defined here, since importing it must not load a runtime."""

EntropyChoice = Literal["auto", "cpu", "device"]
"""Where a setting may put the entropy model."""

Preset = Literal["300B", "1kB", "2kB"]
"""Sizes of scaling.py that a setting or a request may ask for."""

PictureProcessChoice = Literal["auto", "always", "never"]
"""Which picture files a setting may have read in a separate process."""

ColourFixChoice = Literal["never", "auto", "always"]
"""Which frames carry the colour statistics of their pictures: ``auto`` those of pictures over 768x768 pixels."""
