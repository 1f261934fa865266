"""The entropy model in integers: the encoder and the decoder must both compute it identically on every machine.

There is one definition (:mod:`network`) and several interpreters of it: calibration and fake quantisation in torch
(:mod:`fake_quant`), the plain reference in numpy (:mod:`reference`), the proof that no sum can be rounded
(:mod:`proof`), and two ONNX lowerings (:mod:`lower_gpu`, :mod:`lower_cpu`). docs/determinism.md explains why and how.
"""
