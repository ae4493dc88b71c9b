"""What the cloud and devices say to each other over gRPC: the service, its frames, and the keys that both need."""
