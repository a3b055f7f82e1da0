"""Clock frequencies."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.nvml import Gpu

CLOCK = gauge("gpu_clock_hertz", "Frequency at present; clock: sm, memory, video, graphics")
CLOCK_MAX = gauge("gpu_clock_max_hertz", "Highest frequency of this board; clock as in gpu_clock_hertz")

_CLOCKS = (
    ("sm", pynvml.NVML_CLOCK_SM),
    ("memory", pynvml.NVML_CLOCK_MEM),
    ("video", pynvml.NVML_CLOCK_VIDEO),
    ("graphics", pynvml.NVML_CLOCK_GRAPHICS),
)
_MEGA = 1_000_000


def read(gpu: Gpu) -> Iterator[Sample]:
    """NVML speaks in megahertz."""
    for name, clock in _CLOCKS:
        if (value := gpu.ask(pynvml.nvmlDeviceGetClockInfo, clock)) is not None:
            yield CLOCK(value * _MEGA, ("clock", name))


def read_limits(gpu: Gpu) -> Iterator[Sample]:
    """The board's own maxima."""
    for name, clock in _CLOCKS:
        if (value := gpu.ask(pynvml.nvmlDeviceGetMaxClockInfo, clock)) is not None:
            yield CLOCK_MAX(value * _MEGA, ("clock", name))


COLLECTOR = Collector("clocks", (CLOCK,), read)
LIMITS = Collector("clock_limits", (CLOCK_MAX,), read_limits, slow=True)
