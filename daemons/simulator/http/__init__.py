"""The HTTP face: vLLM's endpoints, their bodies and event streams."""
