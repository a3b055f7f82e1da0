"""The alerts' thresholds, so that panels show the same lines."""

from observability.prometheus.render import defaults


def threshold(name: str) -> float:
    """The default of ``prometheus_alert_NAME``, or of ``prometheus_slo_NAME``."""
    values = defaults()
    return float(
        next(values[key] for key in (f"prometheus_alert_{name}", f"prometheus_slo_{name}") if key in values)
    )
