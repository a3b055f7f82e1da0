"""The PCIe link."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, counter, gauge
from daemons.gpu_exporter.nvml import Gpu

GENERATION = gauge("gpu_pcie_link_generation", "PCIe generation at present; falls when the GPU idles")
GENERATION_MAX = gauge("gpu_pcie_link_generation_max", "Highest PCIe generation of GPU and slot together")
WIDTH = gauge("gpu_pcie_link_width_lanes", "PCIe lanes at present")
WIDTH_MAX = gauge("gpu_pcie_link_width_max_lanes", "Most PCIe lanes of GPU and slot together")
REPLAYS = counter("gpu_pcie_replays_total", "PCIe packets sent again because of errors on the link")
THROUGHPUT = gauge(
    "gpu_pcie_throughput_bytes_per_second",
    "PCIe traffic over a sample of 20 ms; direction: transmit, receive",
)

_SIMPLE = (
    (GENERATION, pynvml.nvmlDeviceGetCurrPcieLinkGeneration),
    (GENERATION_MAX, pynvml.nvmlDeviceGetMaxPcieLinkGeneration),
    (WIDTH, pynvml.nvmlDeviceGetCurrPcieLinkWidth),
    (WIDTH_MAX, pynvml.nvmlDeviceGetMaxPcieLinkWidth),
    (REPLAYS, pynvml.nvmlDeviceGetPcieReplayCounter),
)
_DIRECTIONS = (
    ("transmit", pynvml.NVML_PCIE_UTIL_TX_BYTES),
    ("receive", pynvml.NVML_PCIE_UTIL_RX_BYTES),
)
_KILO = 1000


def read(gpu: Gpu) -> Iterator[Sample]:
    """The state of the link, and its traffic.

    The throughput call blocks 20 ms a direction, hence the slow interval. The byte counters among NVML's
    fields (197, 198) would be cheaper, but wrap at a width that NVML does not tell.
    """
    for family, call in _SIMPLE:
        if (value := gpu.ask(call)) is not None:
            yield family(value)
    for name, direction in _DIRECTIONS:
        if (rate := gpu.ask(pynvml.nvmlDeviceGetPcieThroughput, direction)) is not None:
            yield THROUGHPUT(rate * _KILO, ("direction", name))


COLLECTOR = Collector("pcie", (*(family for family, _ in _SIMPLE), THROUGHPUT), read, slow=True)
