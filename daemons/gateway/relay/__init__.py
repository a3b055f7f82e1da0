"""The token path: bytes from an engine to a client."""
