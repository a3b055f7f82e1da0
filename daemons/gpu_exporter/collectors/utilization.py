"""How busy the GPU's engines are."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector, ratio
from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.nvml import Gpu

UTILIZATION = gauge(
    "gpu_utilization_ratio", "Share of the last sample period in which a kernel ran on the GPU, 0 to 1"
)
MEMORY_BUSY = gauge(
    "gpu_memory_busy_ratio", "Share of the last sample period in which GPU memory was read or written, 0 to 1"
)
ENCODER = gauge("gpu_encoder_utilization_ratio", "How busy the video encoder is, 0 to 1")
DECODER = gauge("gpu_decoder_utilization_ratio", "How busy the video decoder is, 0 to 1")


def read(gpu: Gpu) -> Iterator[Sample]:
    """Utilisation of the SMs, the memory bus and the video engines."""
    rates = gpu.ask(pynvml.nvmlDeviceGetUtilizationRates)
    if rates is not None:
        if (busy := ratio(rates.gpu)) is not None:
            yield UTILIZATION(busy)
        if (busy := ratio(rates.memory)) is not None:
            yield MEMORY_BUSY(busy)
    for family, call in (
        (ENCODER, pynvml.nvmlDeviceGetEncoderUtilization),
        (DECODER, pynvml.nvmlDeviceGetDecoderUtilization),
    ):
        pair = gpu.ask(call)
        if pair is not None and (busy := ratio(pair[0])) is not None:
            yield family(busy)


COLLECTOR = Collector("utilization", (UTILIZATION, MEMORY_BUSY, ENCODER, DECODER), read)
