"""NVML to Prometheus: small collectors, an immutable snapshot, a worker that may hang."""
