"""AEIC, the format: pictures to latents to one or two kilobytes, and back to latents. No torch, no service."""

import os

__version__ = "0.1.0"

# ONNX Runtime sends usage data to its vendor unless this is set before it is imported. Nothing here phones home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
