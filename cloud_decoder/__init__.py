"""The cloud: frames of one or two kilobytes come in over gRPC, are stored, and become pictures when somebody's device
is free.

The bitstream is the truth and lives in the store; a reconstruction is a cache entry that can be made again.
``python -m cloud_decoder`` runs the service; :class:`cloud_decoder.inference.decoder.Decoder` is the same
decoder as a library.
"""
