"""Device memory."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.nvml import Gpu

TOTAL = gauge("gpu_memory_total_bytes", "Memory installed on the GPU")
USED = gauge("gpu_memory_used_bytes", "Memory allocated by processes, without what the driver reserves")
FREE = gauge("gpu_memory_free_bytes", "Memory that is still unallocated")
RESERVED = gauge("gpu_memory_reserved_bytes", "Memory the driver and the firmware keep for themselves")
BAR1_TOTAL = gauge("gpu_bar1_memory_total_bytes", "Size of the window in which PCIe peers map GPU memory")
BAR1_USED = gauge("gpu_bar1_memory_used_bytes", "Part of that window in use")


def read(gpu: Gpu) -> Iterator[Sample]:
    """Memory of the GPU; drivers before 510 cannot tell reserved from used, so both stay absent there."""
    info = gpu.ask(pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlMemory_v2)
    if info is not None:
        yield from (USED(info.used), RESERVED(info.reserved))
    else:
        info = gpu.ask(pynvml.nvmlDeviceGetMemoryInfo)
    if info is not None:
        yield from (TOTAL(info.total), FREE(info.free))
    bar1 = gpu.ask(pynvml.nvmlDeviceGetBAR1MemoryInfo)
    if bar1 is not None:
        yield from (BAR1_TOTAL(bar1.bar1Total), BAR1_USED(bar1.bar1Used))


COLLECTOR = Collector("memory", (TOTAL, USED, FREE, RESERVED, BAR1_TOTAL, BAR1_USED), read)
