"""What the exporter costs: CPU a collection, memory over many, time a scrape."""

import http.client
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from daemons.gpu_exporter import collectors
from daemons.gpu_exporter.cgroup import unit_of_pid
from daemons.gpu_exporter.collection import Collection
from daemons.gpu_exporter.nvml import open_nvml
from daemons.gpu_exporter.page import Page
from daemons.gpu_exporter.settings import GpuExporterSettings
from daemons.gpu_exporter.snapshot import LENGTH_BYTES, decode, encode


def rss(pid: int | str = "self") -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Both:
    """Both halves of a collection, without the processes around them, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.nvml = open_nvml()
        standard = collectors.standard(unit_of_pid, 32)
        self.collection = Collection(self.nvml, standard, 10.0, clock=lambda: self.now)
        self.page = Page(GpuExporterSettings(), CollectorRegistry(), clock=lambda: self.now)

    def second(self) -> None:
        self.now += 1.0
        self.page.snapshot(decode(encode(self.collection.take())[LENGTH_BYTES:]))


def test_cpu_of_eight_gpus_is_under_one_percent_of_a_core(inside: Any) -> None:
    """One collection a second: 10 ms of CPU each would be 1 %; slow rounds are part of the mean."""
    inside.eight()
    both = Both()
    for _ in range(20):
        both.second()
    seconds = 200
    before = os.times()
    for _ in range(seconds):
        both.second()
    after = os.times()
    both.nvml.close()
    used = (after.user + after.system - before.user - before.system) / seconds
    print(f"CPU a second at 8 GPUs: {used * 1000:.2f} ms = {used:.2%} of a core")
    assert used < 0.010


@pytest.mark.parametrize(
    "collections", [2_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_memory_is_flat(inside: Any, collections: int) -> None:
    """After a tenth of them: until then allocators and caches fill up."""
    inside.use("a6000-pair")
    both, seen = Both(), list[int]()
    for number in range(collections):
        both.second()
        if number % 500 == 0:
            inside.add(f"0 xid {31 + number // 500 % 7}")
            inside.lines = inside.lines[1:] if len(inside.lines) > 400 else inside.lines
        if number % (collections // 10) == 0:
            seen.append(rss())
    seen.append(rss())
    both.nvml.close()
    print(f"RSS at every tenth of {collections} collections: {[round(each / 1e6, 2) for each in seen]} MB")
    assert seen[-1] - seen[1] < 2_000_000


def scheduled(pid: int | str) -> tuple[float, float]:
    """Seconds that the main thread of `pid` ran, and was ready but waited for a core (sched-stats.rst)."""
    ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


@dataclass(frozen=True)
class Scrape:
    """Seconds from request to last byte; those in which a side waited for a core; CPU of the server."""

    wall: float
    waited: float
    cpu: float


def scrapes(
    exporter: Any, number: int, until: Callable[[], bool] = lambda: False, encoding: str = "identity"
) -> list[Scrape]:
    """`number` scrapes over one connection, as Prometheus keeps it."""
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=60)
    server = exporter.process.pid
    taken = []
    for _ in range(number):
        (ran, waited), (_, own_wait), begun = scheduled(server), scheduled("self"), time.perf_counter()
        connection.request("GET", "/metrics", headers={"Accept-Encoding": encoding})
        connection.getresponse().read()
        wall = time.perf_counter() - begun
        (ran_after, waited_after), (_, own_wait_after) = scheduled(server), scheduled("self")
        lost = waited_after - waited + own_wait_after - own_wait
        taken.append(Scrape(wall, lost, ran_after - ran))
        if until():
            break
        time.sleep(0.002)
    connection.close()
    return taken


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def judged(name: str, taken: list[Scrape]) -> None:
    """Under 5 ms where both sides get a core; what other processes here take away is only shown."""
    walls, cpus = [scrape.wall for scrape in taken], [scrape.cpu for scrape in taken]
    own = [scrape.wall - scrape.waited for scrape in taken]
    shown = ", ".join(
        f"{what} p50 {percentile(values, 0.5) * 1000:.2f} p99 {percentile(values, 0.99) * 1000:.2f} "
        f"max {max(values) * 1000:.2f} ms"
        for what, values in (("wall", walls), ("without waiting for a core", own), ("CPU", cpus))
    )
    print(f"{len(taken)} scrapes, {name}: {shown}")
    assert percentile(own, 0.99) < 0.005
    assert percentile(cpus, 0.99) < 0.002


def test_scrapes_of_eight_gpus_and_during_a_freeze(machine: Any, start: Callable[..., Any]) -> None:
    machine.eight()
    exporter = start(interval=0.2, slow_interval=1.0, stale_after=1.0, worker_timeout=1.5)
    exporter.until(lambda: exporter.value("gpu_present") == 8, "eight GPUs")
    judged("calm", scrapes(exporter, 500))
    judged("calm, gzip", scrapes(exporter, 500, encoding="gzip"))
    before = exporter.workers()
    machine.add("-1 hang.nvmlDeviceGetTemperature 1")
    frozen = scrapes(exporter, 3000, lambda: exporter.workers() not in (before, []))
    judged("frozen and replaced", frozen + scrapes(exporter, 200))
    ours = rss(exporter.process.pid)
    print(f"RSS: exporter {ours / 1e6:.1f} MB, workers {[rss(pid) / 1e6 for pid in exporter.workers()]} MB")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_frozen(machine: Any, start: Callable[..., Any]) -> None:
    machine.eight()
    exporter = start(
        interval=1.0, slow_interval=10.0, stale_after=5.0, worker_timeout=10.0, start_timeout=30.0
    )
    exporter.until(lambda: exporter.value("gpu_present") == 8, "eight GPUs")
    machine.add("-1 hang.nvmlDeviceGetTemperature 1")
    begun, taken = time.monotonic(), list[Scrape]()
    while time.monotonic() - begun < 600:
        taken += scrapes(exporter, 50)
        time.sleep(1)
    judged("ten minutes frozen", taken)
    assert exporter.value("gpu_temperature_celsius{") is None
    machine.remove("-1 hang")
    exporter.until(lambda: exporter.value("gpu_temperature_celsius{") is not None, "recovery")
