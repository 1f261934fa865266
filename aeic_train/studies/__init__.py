"""Experiments: ablations, artefacts, costs."""
