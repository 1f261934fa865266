"""gRPC: the ingest stream from the edges, and one-shot decoding for programs."""
