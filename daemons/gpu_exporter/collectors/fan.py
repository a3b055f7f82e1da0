"""Fans, on boards that have their own."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.nvml import Gpu

SPEED = gauge("gpu_fan_speed_ratio", "Speed the driver asks of the fan, as a share of its nominal maximum")

_MAX_FANS = 16


def read(gpu: Gpu) -> Iterator[Sample]:
    """Each fan by itself; the ratio may pass 1, as fans may run above their nominal maximum."""
    for fan in range(min(gpu.ask(pynvml.nvmlDeviceGetNumFans) or 0, _MAX_FANS)):
        if (percent := gpu.ask(pynvml.nvmlDeviceGetFanSpeed_v2, fan)) is not None:
            yield SPEED(percent / 100, ("fan", str(fan)))


COLLECTOR = Collector("fan", (SPEED,), read)
