"""The command line of ``vllm serve``, per vLLM version."""
