"""Counts of XID errors that neither repeat nor forget, from two sources that report the same events."""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum

from daemons.gpu_exporter import dcgm
from daemons.gpu_exporter.families import Sample, counter, gauge
from daemons.gpu_exporter.snapshot import GpuStatus, XidEvent
from daemons.gpu_exporter.xid import PAGING

ERRORS = counter("gpu_xid_errors_total", "XID errors by code; docs/xid.md tells what each means")
LAST = gauge("gpu_xid_last_timestamp_seconds", "When the XID was last seen, seconds since the epoch")
SOURCES = gauge("gpu_exporter_xid_source_active", "Whether XID errors are read from this source")

_MAX_CODES_PER_GPU = 100


class Source(StrEnum):
    """Where an XID was read."""

    NVML = "nvml"
    KERNEL = "kernel"


class XidCounts:
    """By GPU and code. Lives outside the worker, so that its death forgets nothing.

    Both sources report the same errors, and each may miss some: NVML those of the time without a worker, the
    kernel log those that were overwritten. So the count is the larger of the two, which never tells more than
    happened and never falls.

    Attributes:
        version: grows with every change.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], dict[Source, int]] = {}
        self._last: dict[tuple[str, int], float] = {}
        self._latest: dict[str, int] = {}
        self._active: dict[Source, bool] = {}
        self.version = 0

    def active(self, source: Source, active: bool) -> None:
        """Whether `source` is being read.

        With every change both counts go on from the larger one: else a source that takes over from the other
        would count in its shadow.
        """
        if self._active.get(source) != active:
            self._active[source] = active
            self._counts = {key: _both(max(counts.values())) for key, counts in self._counts.items()}
            self.version += 1

    def add(self, source: Source, events: Iterable[XidEvent]) -> None:
        """Count `events`."""
        for event in events:
            key = (event.pci, event.xid)
            if key not in self._counts and self._codes(event.pci) >= _MAX_CODES_PER_GPU:
                continue
            self._counts.setdefault(key, _both(0))[source] += 1
            if event.at >= self._last.get(key, 0.0):
                self._last[key] = event.at
            self._latest[event.pci] = event.xid
            self.version += 1

    def _codes(self, pci: str) -> int:
        return sum(1 for counted, _ in self._counts if counted == pci)

    def samples(self, gpus: Mapping[str, GpuStatus]) -> Iterator[Sample]:
        """Everything counted; `gpus` are those known, by PCI address.

        Nothing until the kernel's log is read or known to be unreadable: a count that began at zero after a
        restart and then took in the log would look like new errors. No zeros while no source is read.
        """
        yield from (SOURCES(int(self._active.get(source, False)), ("source", source)) for source in Source)
        if Source.KERNEL not in self._active:
            return
        keys = set(self._counts)
        if any(self._active.values()):
            keys |= {(pci, code) for pci in gpus for code in PAGING}
        for pci, code in sorted(keys):
            total = max(self._counts.get((pci, code), _both(0)).values())
            yield ERRORS(total, *_labels(pci, gpus), ("xid", str(code)))
        for (pci, code), at in sorted(self._last.items()):
            yield LAST(round(at, 3), *_labels(pci, gpus), ("xid", str(code)))

    def dcgm_samples(self, gpus: Mapping[str, GpuStatus]) -> Iterator[Sample]:
        """The last code of each GPU, as dcgm-exporter shows it: 0 until there was one."""
        for pci, gpu in gpus.items():
            if gpu.dcgm_labels:
                yield dcgm.XID(self._latest.get(pci, 0), *gpu.dcgm_labels)


def _both(count: int) -> dict[Source, int]:
    return dict.fromkeys(Source, count)


def _labels(pci: str, gpus: Mapping[str, GpuStatus]) -> tuple[tuple[str, str], ...]:
    gpu = gpus.get(pci)
    index, uuid = ("", "") if gpu is None else (str(gpu.index), gpu.uuid)
    return (("gpu", index), ("uuid", uuid), ("pci_bus_id", pci))
