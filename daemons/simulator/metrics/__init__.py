"""The ``/metrics`` of vLLM, by release."""
