"""HTTP: pictures in, status out."""
