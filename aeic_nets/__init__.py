"""AEIC's networks in torch: shared by training and by the cloud's GPU decoder.

Names inside are the field's own: g_a, h_a, h_s, g_c, g_s, y, z, y_hat, x_hat.
"""

import aeic  # noqa: F401 - before any import of ONNX Runtime, whose telemetry it switches off
