"""Sources of pictures besides HTTP: cameras, watched folders and MQTT topics."""
