"""The commands of ``aeic`` that work on pictures and frames, one module each. They return an exit code."""
