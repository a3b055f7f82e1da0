"""Grafana's dashboards, built in Python, and what is checked and drawn of them."""
