"""Memory taken out of service: remapped rows (Ampere and newer), retired pages (before)."""

from collections.abc import Iterator

import pynvml

from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, counter, gauge
from daemons.gpu_exporter.nvml import Gpu

REMAPPED = counter("gpu_remapped_rows_total", "Memory rows replaced by spare ones, by the kind of error")
REMAP_PENDING = gauge("gpu_row_remap_pending", "Whether a remapping waits for a GPU reset")
REMAP_FAILURE = gauge(
    "gpu_row_remap_failure", "Whether a remapping failed for lack of spare rows: replace the GPU"
)
SPARES = gauge("gpu_row_remap_banks", "Memory banks by what is left of their spare rows")
RETIRED = counter("gpu_retired_pages_total", "Memory pages taken out of service, by cause")
RETIRED_PENDING = gauge("gpu_retired_pages_pending", "Whether pages wait for a reboot to be retired")

_CAUSES = (
    ("single_bit", pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS),
    ("double_bit", pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR),
)
_LEFT = ("max", "high", "partial", "low", "none")


def read_remapped(gpu: Gpu) -> Iterator[Sample]:
    """Rows remapped over the life of the board."""
    rows = gpu.ask(pynvml.nvmlDeviceGetRemappedRows)
    if rows is not None:
        corrected, uncorrected, pending, failure = rows
        yield from (
            REMAPPED(corrected, ("error", "corrected")),
            REMAPPED(uncorrected, ("error", "uncorrected")),
            REMAP_PENDING(pending),
            REMAP_FAILURE(failure),
        )
    banks = gpu.ask(pynvml.nvmlDeviceGetRowRemapperHistogram)
    if banks is not None:
        yield from (SPARES(getattr(banks, left), ("spare_rows", left)) for left in _LEFT)


def read_retired(gpu: Gpu) -> Iterator[Sample]:
    """Pages retired over the life of the board."""
    for name, cause in _CAUSES:
        if (pages := gpu.ask(pynvml.nvmlDeviceGetRetiredPages, cause)) is not None:
            yield RETIRED(len(pages), ("cause", name))
    if (pending := gpu.ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus)) is not None:
        yield RETIRED_PENDING(pending)


REMAPPED_ROWS = Collector(
    "remapped_rows", (REMAPPED, REMAP_PENDING, REMAP_FAILURE, SPARES), read_remapped, slow=True
)
RETIRED_PAGES = Collector("retired_pages", (RETIRED, RETIRED_PENDING), read_retired, slow=True)
