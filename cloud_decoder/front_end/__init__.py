"""The role without a device: HTTP and gRPC in front of a shared job queue."""
