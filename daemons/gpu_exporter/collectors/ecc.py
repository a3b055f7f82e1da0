"""Memory errors found by ECC."""

from collections.abc import Iterator
from itertools import product

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, counter, gauge
from daemons.gpu_exporter.nvml import Gpu

ENABLED = gauge("gpu_ecc_enabled", "Whether ECC is in force")
PENDING = gauge("gpu_ecc_enabled_pending", "Whether ECC will be in force after the next reset")
ERRORS = counter(
    "gpu_ecc_errors_total",
    "ECC errors; error: corrected, uncorrected; counter: volatile (since driver load), aggregate (lifetime)",
)

_ERRORS = (
    ("corrected", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
    ("uncorrected", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
)
_COUNTERS = (("volatile", pynvml.NVML_VOLATILE_ECC), ("aggregate", pynvml.NVML_AGGREGATE_ECC))


def read(gpu: Gpu) -> Iterator[Sample]:
    """Boards without ECC support none of this; with ECC switched off there are no counters."""
    mode = gpu.ask(pynvml.nvmlDeviceGetEccMode)
    if mode is not None:
        yield from (ENABLED(mode[0]), PENDING(mode[1]))
    for (error, kind), (name, which) in product(_ERRORS, _COUNTERS):
        number = gpu.ask(pynvml.nvmlDeviceGetTotalEccErrors, kind, which)
        if number is not None:
            yield ERRORS(number, ("error", error), ("counter", name))


COLLECTOR = Collector("ecc", (ENABLED, PENDING, ERRORS), read, slow=True)
