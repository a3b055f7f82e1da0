"""Temperatures and the thresholds at which the GPU slows down or switches off."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.nvml import Gpu

CORE = gauge("gpu_temperature_celsius", "Temperature of the GPU die")
MEMORY = gauge("gpu_memory_temperature_celsius", "Temperature of the memory; boards with HBM only")
MARGIN = gauge(
    "gpu_temperature_margin_celsius", "Degrees left until the GPU slows itself down; Hopper and newer"
)
THRESHOLD = gauge(
    "gpu_temperature_threshold_celsius",
    "Temperature at which the GPU acts; threshold: shutdown, slowdown, memory_max, gpu_max",
)

_THRESHOLDS = (
    ("shutdown", pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN),
    ("slowdown", pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
    ("memory_max", pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX),
    ("gpu_max", pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX),
)


def read(gpu: Gpu) -> Iterator[Sample]:
    """Memory temperature 0 is what boards without a sensor say."""
    core = gpu.ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU)
    if core is not None:
        yield CORE(core)
    (memory,) = gpu.fields([pynvml.NVML_FI_DEV_MEMORY_TEMP])
    if memory:
        yield MEMORY(memory)
    if (margin := gpu.ask(pynvml.nvmlDeviceGetMarginTemperature)) is not None:
        yield MARGIN(margin)


def read_thresholds(gpu: Gpu) -> Iterator[Sample]:
    """Thresholds are burnt into the board."""
    for name, which in _THRESHOLDS:
        if (value := gpu.ask(pynvml.nvmlDeviceGetTemperatureThreshold, which)) is not None:
            yield THRESHOLD(value, ("threshold", name))


COLLECTOR = Collector("temperature", (CORE, MEMORY, MARGIN), read)
THRESHOLDS = Collector("temperature_thresholds", (THRESHOLD,), read_thresholds, slow=True)
