"""Multi-instance GPU: the mode, and the memory of each instance."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.nvml import Gpu

ENABLED = gauge("gpu_mig_enabled", "Whether the GPU is split into instances")
PENDING = gauge("gpu_mig_enabled_pending", "Whether it will be after the next reset")
MEMORY_TOTAL = gauge("gpu_mig_memory_total_bytes", "Memory of the instance")
MEMORY_USED = gauge("gpu_mig_memory_used_bytes", "Memory of the instance in use")


def read(gpu: Gpu) -> Iterator[Sample]:
    """The mode, and instances where it is on."""
    mode = gpu.ask(pynvml.nvmlDeviceGetMigMode)
    if mode is None:
        return
    yield from (ENABLED(mode[0]), PENDING(mode[1]))
    if mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
        for index in range(gpu.ask(pynvml.nvmlDeviceGetMaxMigDeviceCount) or 0):
            yield from _instance(gpu, index)


def _instance(gpu: Gpu, index: int) -> Iterator[Sample]:
    handle = gpu.ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, index)
    if handle is None:
        return
    uuid = gpu.attempt(pynvml.nvmlDeviceGetUUID, handle)
    instance = gpu.attempt(pynvml.nvmlDeviceGetGpuInstanceId, handle)
    compute = gpu.attempt(pynvml.nvmlDeviceGetComputeInstanceId, handle)
    memory = gpu.attempt(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if uuid is None or memory is None:
        return
    labels = (
        ("mig_uuid", uuid),
        ("gpu_instance", "" if instance is None else str(instance)),
        ("compute_instance", "" if compute is None else str(compute)),
    )
    yield from (MEMORY_TOTAL(memory.total, *labels), MEMORY_USED(memory.used, *labels))


COLLECTOR = Collector(
    "mig",
    (ENABLED, PENDING, MEMORY_TOTAL, MEMORY_USED),
    read,
    slow=True,
    occasional=frozenset({MEMORY_TOTAL, MEMORY_USED}),
)
