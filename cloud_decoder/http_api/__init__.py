"""HTTP: frames, images, events, status, and the page."""
