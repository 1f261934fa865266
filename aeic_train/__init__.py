"""AEIC's toolchain: data, losses, recipes, the training loop, export of a bundle, evaluation."""

import aeic  # noqa: F401 - before any import of ONNX Runtime, whose telemetry it switches off
