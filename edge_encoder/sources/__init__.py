"""Sources of pictures besides HTTP: cameras and watched folders."""
