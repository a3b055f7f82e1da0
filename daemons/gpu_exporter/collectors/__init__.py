"""The registry: one file a family, each a `Collector`."""

from collections.abc import Callable

from daemons.gpu_exporter.collectors import (
    clock_events,
    clocks,
    ecc,
    fan,
    info,
    memory,
    mig,
    nvlink,
    pcie,
    power,
    rows,
    state,
    temperature,
    units,
    utilization,
)
from daemons.gpu_exporter.collectors.base import Collector

__all__ = ["Collector", "standard"]


def standard(unit_of: Callable[[int], str], max_units: int) -> tuple[Collector, ...]:
    """Every collector, in the order in which its families are shown."""
    return (
        info.COLLECTOR,
        utilization.COLLECTOR,
        memory.COLLECTOR,
        power.COLLECTOR,
        power.LIMITS,
        temperature.COLLECTOR,
        temperature.THRESHOLDS,
        clocks.COLLECTOR,
        clocks.LIMITS,
        clock_events.COLLECTOR,
        clock_events.TOTALS,
        state.COLLECTOR,
        state.MODES,
        fan.COLLECTOR,
        ecc.COLLECTOR,
        rows.REMAPPED_ROWS,
        rows.RETIRED_PAGES,
        pcie.COLLECTOR,
        nvlink.LINKS,
        nvlink.TRAFFIC,
        mig.COLLECTOR,
        units.collector(unit_of, max_units),
    )
