"""The gRPC stream to the cloud: window, acknowledgements, reconnects."""
