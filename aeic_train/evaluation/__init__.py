"""Rate, distortion and perception: metrics, runs over a folder, result tables and curves."""
