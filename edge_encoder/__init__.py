"""AEIC, the edge: a photograph in, one or two kilobytes safely kept, then sent. Never imports torch."""

import aeic  # noqa: F401 - before any import of ONNX Runtime, whose telemetry it switches off
