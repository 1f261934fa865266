"""Other model servers with the same decoder, for benchmarks/cloud/serve.py."""
