"""Builds the dashboards: ``python -m observability.grafana.build``."""
