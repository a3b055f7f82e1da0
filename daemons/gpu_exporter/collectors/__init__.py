"""The registry: one file a family, each a `Collector`."""

from daemons.gpu_exporter.collectors import clocks, memory, power, temperature, utilization
from daemons.gpu_exporter.collectors.base import Collector

__all__ = ["Collector", "standard"]


def standard() -> tuple[Collector, ...]:
    """Every collector, in the order in which its families are shown."""
    return (
        utilization.COLLECTOR,
        memory.COLLECTOR,
        power.COLLECTOR,
        power.LIMITS,
        temperature.COLLECTOR,
        temperature.THRESHOLDS,
        clocks.COLLECTOR,
        clocks.LIMITS,
    )
