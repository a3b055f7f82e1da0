"""The HTTP API in front of the engines: who may ask, what, when, of which engine, and the bill."""
