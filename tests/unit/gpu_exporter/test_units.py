"""The bound on units."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from daemons.gpu_exporter.cgroup import UNKNOWN
from daemons.gpu_exporter.collectors.units import MEMORY, UTILIZATION, collector
from daemons.gpu_exporter.nvml import Gpu


def test_beyond_the_bound_units_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = [SimpleNamespace(pid=pid, usedGpuMemory=1000 - pid) for pid in range(100)]
    busy = [
        SimpleNamespace(pid=0, timeStamp=5, smUtil=50),
        SimpleNamespace(pid=1, timeStamp=5, smUtil=4294967295),
    ]

    def utilization(_: Any, since: int) -> list[Any]:
        return busy if since < 5 else []

    monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", utilization)
    monkeypatch.setattr(
        "daemons.gpu_exporter.collectors.units._PROCESSES", ((lambda _: processes,), (lambda _: [],))
    )
    units = collector(lambda pid: f"unit{pid:03d}.service", 3)
    samples = list(units.read(Gpu(None, 0, "GPU-a")))
    memory = {dict(s.labels)["unit"]: s.value for s in samples if s.family is MEMORY}
    assert set(memory) == {"unit000.service", "unit001.service", "unit002.service", "other"}
    assert sum(memory.values()) == sum(1000 - pid for pid in range(100))
    shares = {dict(s.labels)["unit"]: s.value for s in samples if s.family is UTILIZATION}
    assert shares["unit000.service"] == 0.5
    again = {
        dict(s.labels)["unit"]: s.value for s in units.read(Gpu(None, 0, "GPU-a")) if s.family is UTILIZATION
    }
    assert again["unit000.service"] == 0.0


def test_a_process_is_looked_up_once_unless_it_could_not_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [SimpleNamespace(pid=pid, usedGpuMemory=1000) for pid in (1, 2)]
    monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", lambda *_: [])
    monkeypatch.setattr(
        "daemons.gpu_exporter.collectors.units._PROCESSES", ((lambda _: listed,), (lambda _: [],))
    )
    asked: list[int] = []

    def unit_of(pid: int) -> str:
        asked.append(pid)
        return UNKNOWN if pid == 2 else "a.service"

    units, gpu = collector(unit_of, 3), Gpu(None, 0, "GPU-a")
    list(units.read(gpu))
    list(units.read(gpu))
    assert asked == [1, 2, 2]
    del listed[0]
    list(units.read(gpu))
    listed.insert(0, SimpleNamespace(pid=1, usedGpuMemory=1000))
    list(units.read(gpu))
    assert asked[3:].count(1) == 1, "a process that was gone may be another one"
