"""What an owner of a card runs: see docs/gpu.md."""
