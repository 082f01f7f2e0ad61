"""What subscribers see: the protocol logic without sockets, and the gRPC servers on top of it."""
