"""Prometheus' rules as templates, and rendered with the defaults."""
