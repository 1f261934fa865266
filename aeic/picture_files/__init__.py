"""What :mod:`aeic.pixels` needs to know of picture files that Pillow does not say: their headers and their colours."""
