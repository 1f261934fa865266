"""The gRPC stream to the cloud: flow control, acknowledgements and reconnects."""
