"""The entropy model in integers: what encoder and decoder both compute, and must compute alike on every machine.

One definition (:mod:`network`), read by several interpreters: calibration and fake quantisation in torch
(:mod:`fake_quant`), the plain reference in numpy (:mod:`reference`), the proof that no sum can be rounded
(:mod:`proof`), and two ONNX lowerings (:mod:`lower_gpu`, :mod:`lower_cpu`). docs/determinism.md tells why and how.
"""
