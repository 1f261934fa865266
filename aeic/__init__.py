"""AEIC, the format: pictures to latents to one or two kilobytes, and back to latents. numpy and ONNX Runtime only."""

__version__ = "0.1.0"
