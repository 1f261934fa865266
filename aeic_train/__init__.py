"""AEIC's toolchain: data, losses, recipes, the training loop, export of a bundle, evaluation."""
