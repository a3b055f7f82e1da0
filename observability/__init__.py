"""What operators look at: Prometheus' rules, Grafana's dashboards. Nothing here runs on a host."""
