"""Execution backends for the graphs of a bundle: ONNX Runtime sessions, CUDA and OpenVINO."""
