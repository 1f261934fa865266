"""From trained weights to a bundle: integer entropy model, ONNX graphs, frequency tables."""
