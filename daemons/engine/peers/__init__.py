"""Whether GPUs that share a model reach each other's memory, and what vLLM is told of it."""
