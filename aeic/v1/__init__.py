"""Generated protobuf and gRPC stubs of protos/aeic/v1 (`make protos`); never edited by hand."""
