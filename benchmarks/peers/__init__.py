"""Other model servers with the same decoder, for benchmarks/serve.py."""
