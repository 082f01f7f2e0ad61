"""The ring buffer: drained in bulk, framed as a batch."""
