"""The LLM inference stack: one sub-package per process, `runtime` below them all."""
