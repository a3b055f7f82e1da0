"""Multi-instance GPU: the mode, and the memory of each instance."""

from collections.abc import Iterator
from typing import Any

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.nvml import Gpu

ENABLED = gauge("gpu_mig_enabled", "Whether the GPU is split into instances")
PENDING = gauge("gpu_mig_enabled_pending", "Whether it will be after the next reset")
INFO = gauge("gpu_mig_info", "Identity of each MIG device; always 1")
MEMORY_TOTAL = gauge("gpu_mig_memory_total_bytes", "Memory of the GPU instance")
MEMORY_USED = gauge("gpu_mig_memory_used_bytes", "Memory of the GPU instance in use")


def read(gpu: Gpu) -> Iterator[Sample]:
    """The mode, and instances where it is on.

    Memory belongs to the GPU instance, which several MIG devices may share: it is told once.
    """
    mode = gpu.ask(pynvml.nvmlDeviceGetMigMode)
    if mode is None:
        return
    yield from (ENABLED(mode[0]), PENDING(mode[1]))
    if mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return
    told: set[int] = set()
    for index in range(gpu.ask(pynvml.nvmlDeviceGetMaxMigDeviceCount) or 0):
        handle = gpu.ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, index)
        instance = None if handle is None else gpu.attempt(pynvml.nvmlDeviceGetGpuInstanceId, handle)
        if instance is None:
            continue
        label = ("gpu_instance", str(instance))
        yield from _device(gpu, handle, label)
        if instance not in told:
            told.add(instance)
            yield from _memory(gpu, handle, label)


def _device(gpu: Gpu, handle: Any, instance: tuple[str, str]) -> Iterator[Sample]:
    uuid = gpu.attempt(pynvml.nvmlDeviceGetUUID, handle)
    compute = gpu.attempt(pynvml.nvmlDeviceGetComputeInstanceId, handle)
    if uuid is not None:
        yield INFO(
            1,
            ("mig_uuid", uuid),
            instance,
            ("compute_instance", "" if compute is None else str(compute)),
            ("name", gpu.attempt(pynvml.nvmlDeviceGetName, handle) or ""),
        )


def _memory(gpu: Gpu, handle: Any, instance: tuple[str, str]) -> Iterator[Sample]:
    memory = gpu.attempt(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is not None:
        yield from (MEMORY_TOTAL(memory.total, instance), MEMORY_USED(memory.used, instance))


COLLECTOR = Collector(
    "mig",
    (ENABLED, PENDING, INFO, MEMORY_TOTAL, MEMORY_USED),
    read,
    slow=True,
    occasional=frozenset({INFO, MEMORY_TOTAL, MEMORY_USED}),
)
