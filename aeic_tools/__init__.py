"""What a person types: the command line, the demo, the benches."""

import aeic  # noqa: F401 - before any import of ONNX Runtime, whose telemetry it switches off
