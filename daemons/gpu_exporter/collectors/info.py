"""What the GPU is."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.nvml import Gpu

INFO = gauge("gpu_info", "Identity of the GPU; always 1")


def read(gpu: Gpu) -> Iterator[Sample]:
    """A label that cannot be had is empty.

    The minor number names the device node (``/dev/nvidia0``); it is not always the index.
    """
    minor = gpu.ask(pynvml.nvmlDeviceGetMinorNumber)
    capability = gpu.ask(pynvml.nvmlDeviceGetCudaComputeCapability)
    yield INFO(
        1,
        ("name", gpu.name),
        ("pci_bus_id", gpu.pci),
        ("minor", "" if minor is None else str(minor)),
        ("vbios", gpu.ask(pynvml.nvmlDeviceGetVbiosVersion) or ""),
        ("serial", gpu.ask(pynvml.nvmlDeviceGetSerial) or ""),
        ("compute_capability", "" if capability is None else f"{capability[0]}.{capability[1]}"),
    )


COLLECTOR = Collector("info", (INFO,), read, slow=True)
