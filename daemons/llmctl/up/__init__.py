"""What `make up` needs before anything can start: vLLM, a model, and where they go."""
