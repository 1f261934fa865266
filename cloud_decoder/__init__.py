"""The cloud receives frames of one or two kilobytes over gRPC, stores them, and decodes them to pictures.

The store keeps the bitstreams. A reconstruction is a cache entry, which can be made again from its bitstream.
``python -m cloud_decoder`` runs the service; :class:`cloud_decoder.inference.decoder.Decoder` is the same
decoder as a library.
"""

import aeic  # noqa: F401 - before any import of ONNX Runtime, whose telemetry it switches off
