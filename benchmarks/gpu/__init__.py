"""What an owner of a card runs: see docs/how-to/gpu.md."""
