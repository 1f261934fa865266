"""The command line, the demo and the benchmarks behind `aeic bench`."""

import aeic  # noqa: F401 - before any import of ONNX Runtime, whose telemetry it switches off
