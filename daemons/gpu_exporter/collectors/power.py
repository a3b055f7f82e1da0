"""Power draw, its limits, and energy."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, counter, gauge
from daemons.gpu_exporter.nvml import Gpu

USAGE = gauge("gpu_power_watts", "Power drawn by the board; on Ampere and newer the mean over one second")
ENERGY = counter("gpu_energy_joules_total", "Energy used since the driver was loaded")
LIMIT = gauge("gpu_power_limit_watts", "Power limit in force")
DEFAULT = gauge("gpu_power_limit_default_watts", "Power limit the board comes with")
LOWEST = gauge("gpu_power_limit_min_watts", "Lowest power limit that can be set")
HIGHEST = gauge("gpu_power_limit_max_watts", "Highest power limit that can be set")

_MILLI = 1000


def read(gpu: Gpu) -> Iterator[Sample]:
    """NVML speaks in milliwatts and millijoules."""
    if (draw := gpu.ask(pynvml.nvmlDeviceGetPowerUsage)) is not None:
        yield USAGE(draw / _MILLI)
    if (energy := gpu.ask(pynvml.nvmlDeviceGetTotalEnergyConsumption)) is not None:
        yield ENERGY(energy / _MILLI)


def read_limits(gpu: Gpu) -> Iterator[Sample]:
    """Limits change only when an operator sets them."""
    if (limit := gpu.ask(pynvml.nvmlDeviceGetEnforcedPowerLimit)) is not None:
        yield LIMIT(limit / _MILLI)
    if (limit := gpu.ask(pynvml.nvmlDeviceGetPowerManagementDefaultLimit)) is not None:
        yield DEFAULT(limit / _MILLI)
    if (limits := gpu.ask(pynvml.nvmlDeviceGetPowerManagementLimitConstraints)) is not None:
        yield from (LOWEST(limits[0] / _MILLI), HIGHEST(limits[1] / _MILLI))


COLLECTOR = Collector("power", (USAGE, ENERGY), read)
LIMITS = Collector("power_limits", (LIMIT, DEFAULT, LOWEST, HIGHEST), read_limits, slow=True)
