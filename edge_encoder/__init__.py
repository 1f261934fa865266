"""AEIC, the edge: encodes photographs to one or two kilobytes, stores them durably and sends them. No torch."""

import aeic  # noqa: F401 - before any import of ONNX Runtime, whose telemetry it switches off
