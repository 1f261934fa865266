"""From a picture to a frame: execution providers, analysis, entropy coding, rate control."""

from typing import Literal

ProviderChoice = Literal["auto", "cpu", "openvino", "cuda", "tensorrt"]
"""Execution providers that a setting may ask for. Defined here, since importing it must not load a runtime."""
