"""An engine that behaves like vLLM without a GPU: for tests, demos and routing studies."""
