"""NVLink: state and errors of each link, traffic of all."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, counter, gauge
from daemons.gpu_exporter.nvml import Gpu

UP = gauge("gpu_nvlink_up", "Whether the link is up")
ERRORS = counter("gpu_nvlink_errors_total", "Errors on the link; error: replay, recovery, crc")
TRANSMITTED = counter(
    "gpu_nvlink_transmitted_bytes_total", "Data sent over all links, without protocol overhead"
)
RECEIVED = counter(
    "gpu_nvlink_received_bytes_total", "Data received over all links, without protocol overhead"
)

_ALL_LINKS = 0xFFFFFFFF
_KIBI = 1024
_ERRORS = (
    ("replay", pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY),
    ("recovery", pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY),
    ("crc", pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_CRC),
)


def read_links(gpu: Gpu) -> Iterator[Sample]:
    """State and errors; a GPU without NVLink has no links."""
    (count,) = gpu.fields([pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT])
    links = range(min(int(count or 0), pynvml.NVML_NVLINK_MAX_LINKS))
    for link in links:
        if (state := gpu.ask(pynvml.nvmlDeviceGetNvLinkState, link)) is not None:
            yield UP(state, ("link", str(link)))
    if not links:
        return
    wanted = [(name, link, field) for link in links for name, field in _ERRORS]
    values = gpu.fields([(field, link) for _, link, field in wanted])
    for (name, link, _), value in zip(wanted, values, strict=True):
        if value is not None:
            yield ERRORS(value, ("link", str(link)), ("error", name))


def read_traffic(gpu: Gpu) -> Iterator[Sample]:
    """NVML counts KiB."""
    sent, received = gpu.fields(
        [
            (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, _ALL_LINKS),
            (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, _ALL_LINKS),
        ]
    )
    if sent is not None:
        yield TRANSMITTED(sent * _KIBI)
    if received is not None:
        yield RECEIVED(received * _KIBI)


LINKS = Collector("nvlink", (UP, ERRORS), read_links, slow=True)
TRAFFIC = Collector("nvlink_traffic", (TRANSMITTED, RECEIVED), read_traffic)
