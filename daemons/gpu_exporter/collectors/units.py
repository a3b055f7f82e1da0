"""Memory and utilisation of the GPU by systemd unit."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml

from daemons.gpu_exporter.cgroup import UNKNOWN
from daemons.gpu_exporter.collectors.base import Collector
from daemons.gpu_exporter.families import Sample, gauge
from daemons.gpu_exporter.nvml import Gpu

MEMORY = gauge("gpu_unit_memory_used_bytes", "GPU memory allocated by the processes of the systemd unit")
UTILIZATION = gauge(
    "gpu_unit_utilization_ratio", "Share of the last sample period in which kernels of the unit ran, 0 to 1"
)
PROCESSES = gauge("gpu_unit_processes", "Processes of the systemd unit that use the GPU")

OTHER = "other"

# Drivers before 510 lack the third version; the bindings' unversioned names raise where they do.
_PROCESSES = (
    (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetComputeRunningProcesses_v2),
    (pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2),
)


@dataclass(slots=True)
class _Usage:
    processes: int = 0
    memory: float | None = None
    busy: float | None = None

    def add(self, other: "_Usage") -> None:
        self.processes += other.processes
        self.memory = _sum(self.memory, other.memory)
        self.busy = _sum(self.busy, other.busy)


class Units:
    """The collector's state: units by process, and how far the driver's ring of samples was read, by GPU."""

    def __init__(self, unit_of: Callable[[int], str], max_units: int) -> None:
        self._unit_of = unit_of
        self._max_units = max_units
        self._last_seen: dict[str, int] = {}
        self._unit_by_pid: dict[str, dict[int, str]] = {}

    def read(self, gpu: Gpu) -> Iterator[Sample]:
        """One set of series a unit; those beyond the bound are summed as ``other``, biggest shown first."""
        usage = self._by_unit(gpu)
        if usage is None:
            return
        for unit, used in sorted(self._bounded(usage).items()):
            yield PROCESSES(used.processes, ("unit", unit))
            if used.memory is not None:
                yield MEMORY(used.memory, ("unit", unit))
            if used.busy is not None:
                yield UTILIZATION(min(used.busy, 1.0), ("unit", unit))

    def _by_unit(self, gpu: Gpu) -> dict[str, _Usage] | None:
        memory = _memory_by_pid(gpu)
        busy = self._busy_by_pid(gpu)
        if memory is None:
            return None
        usage: dict[str, _Usage] = {}
        units = self._units(gpu, memory)
        for pid, used in memory.items():
            share = None if busy is None else busy.get(pid, 0.0)
            usage.setdefault(units[pid], _Usage()).add(_Usage(1, used, share))
        return usage

    def _units(self, gpu: Gpu, pids: Iterable[int]) -> dict[int, str]:
        """The unit of each process; asked once for as long as the process stays on the GPU."""
        known = self._unit_by_pid.get(gpu.uuid, {})
        units = {pid: known.get(pid) or self._unit_of(pid) for pid in pids}
        self._unit_by_pid[gpu.uuid] = {pid: unit for pid, unit in units.items() if unit != UNKNOWN}
        return units

    def _busy_by_pid(self, gpu: Gpu) -> dict[int, float] | None:
        """NVML gives a sample only for processes that were busy, so a missing one is a zero."""
        last, empty = self._last_seen.get(gpu.uuid, 0), list[Any]()
        samples = gpu.ask(pynvml.nvmlDeviceGetProcessUtilization, last, nothing=empty)
        if samples is None:
            return None
        newest = {sample.pid: sample for sample in sorted(samples, key=lambda sample: sample.timeStamp)}
        self._last_seen[gpu.uuid] = max([last, *(sample.timeStamp for sample in newest.values())])
        # Drivers are known to leave nonsense in these samples; a share above 100 % is dropped, not shown.
        return {pid: sample.smUtil / 100 for pid, sample in newest.items() if sample.smUtil <= 100}

    def _bounded(self, usage: Mapping[str, _Usage]) -> dict[str, _Usage]:
        ranked = sorted(usage, key=lambda unit: (-(usage[unit].memory or 0), unit))
        shown = {unit: usage[unit] for unit in ranked[: self._max_units]}
        for unit in ranked[self._max_units :]:
            shown.setdefault(OTHER, _Usage()).add(usage[unit])
        return shown


def _memory_by_pid(gpu: Gpu) -> dict[int, float | None] | None:
    """Memory by process; a process with both a compute and a graphics context is listed twice by NVML."""
    compute, graphics = (_first(gpu, calls) for calls in _PROCESSES)
    if compute is None and graphics is None:
        return None
    used: dict[int, float | None] = {}
    for processes in (compute or [], graphics or []):
        listed: dict[int, float | None] = {}
        for process in processes:
            listed[process.pid] = _sum(listed.get(process.pid), process.usedGpuMemory)
        for pid, memory in listed.items():
            used[pid] = memory if used.get(pid) is None else max(used[pid] or 0, memory or 0)
    return used


def _first(gpu: Gpu, calls: tuple[Callable[[Any], list[Any]], ...]) -> list[Any] | None:
    for call in calls:
        if (processes := gpu.ask(call)) is not None:
            return processes
    return None


def _sum(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other


def collector(unit_of: Callable[[int], str], max_units: int) -> Collector:
    """The collector; `unit_of` names the unit of a process, and names few: its results become labels."""
    return Collector(
        "units",
        (MEMORY, UTILIZATION, PROCESSES),
        Units(unit_of, max_units).read,
        occasional=frozenset({MEMORY, UTILIZATION, PROCESSES}),
    )
