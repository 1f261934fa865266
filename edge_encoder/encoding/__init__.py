"""From a picture to a frame: execution providers, analysis, entropy coding, rate control."""
