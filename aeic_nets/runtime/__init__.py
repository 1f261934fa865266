"""Running the networks on a device: the torch backend, CUDA graphs, the memory plan and the precision."""
