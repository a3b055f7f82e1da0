"""What a scrape is answered with: bytes made beforehand, and the age of the data at this moment."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import gzip_accepted

from daemons.gpu_exporter.families import CONTENT_TYPE, Sample, counter, gauge, render
from daemons.gpu_exporter.inventory import Inventory
from daemons.gpu_exporter.packing import Packed, gzipped
from daemons.gpu_exporter.settings import GpuExporterSettings
from daemons.gpu_exporter.snapshot import NvmlState, Snapshot, XidEvent
from daemons.gpu_exporter.supervisor import Ending, Events
from daemons.gpu_exporter.xid_counts import Source, XidCounts
from daemons.runtime.cli import counted

STATE = gauge("gpu_exporter_nvml_state", "Whether NVML answers: 1 for the state that holds, 0 for the others")
AGE = gauge(
    "gpu_exporter_snapshot_age_seconds", "Age of the last collection; past the limit GPU series vanish"
)
STALE_AFTER = gauge("gpu_exporter_stale_after_seconds", "Age at which GPU series vanish")
SUCCESS = gauge("gpu_exporter_collection_success", "Whether NVML answered and its data are fresh")
LAST = gauge(
    "gpu_exporter_last_success_timestamp_seconds", "When NVML last answered, seconds since the epoch"
)
DURATION = gauge("gpu_exporter_collection_duration_seconds", "Time that the last collection took")
WORKERS = counter("gpu_exporter_worker_endings_total", "Workers that ended and were replaced, by reason")
STUCK = gauge("gpu_exporter_workers_stuck", "Workers that the kernel does not let die")

_PLAIN = {"Content-Type": CONTENT_TYPE, "Vary": "Accept-Encoding"}
_GZIPPED = {**_PLAIN, "Content-Encoding": "gzip"}


class Page(Events):
    """Holds the last snapshot and the health of collecting apart from each other, and renders both.

    Attributes:
        xids: the XID errors so far.
        inventory: the GPUs that are there and that should be.
        heard: set once anything is known of NVML.
    """

    def __init__(
        self,
        settings: GpuExporterSettings,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._registry = registry
        self.xids = XidCounts()
        self._endings = dict.fromkeys(Ending, 0)
        self._stuck = 0
        self._snapshot: Snapshot | None = None
        self._last_success: Snapshot | None = None
        self._state = NvmlState.STARTING
        self._detail = "NVML has not answered yet"
        self.heard = asyncio.Event()
        self.apply(settings)
        self.refresh_process()

    def apply(self, settings: GpuExporterSettings) -> None:
        """Take over new settings; GPUs seen before are forgotten."""
        self._stale_after = settings.stale_after
        self.inventory = Inventory(settings.expected_gpus)
        self._counted_at: tuple[int, int] | None = None
        self._refresh()

    def snapshot(self, snapshot: Snapshot) -> None:
        self._state, self._detail = snapshot.state, snapshot.detail
        self.heard.set()
        self.xids.add(Source.NVML, snapshot.xids)
        self.xids.active(Source.NVML, snapshot.xid_events)
        self.inventory.update(snapshot.gpus)
        self._snapshot = None
        if snapshot.state is NvmlState.OK:
            self._snapshot = self._last_success = snapshot
        self._refresh()

    def absent(self, state: NvmlState, detail: str) -> None:
        self._state, self._detail = state, detail
        self.heard.set()
        self.xids.active(Source.NVML, False)
        if state is NvmlState.RELEASED:
            self._snapshot = None
        self._refresh()

    def ended(self, ending: Ending) -> None:
        self._endings[ending] += 1
        self._refresh()

    def abandoned(self, number: int) -> None:
        self._stuck = number
        self._refresh()

    def kernel_xid(self, event: XidEvent) -> None:
        """The kernel's log tells of an XID error."""
        self.xids.add(Source.KERNEL, [event])

    def kernel_log(self, active: bool) -> None:
        """Whether the kernel's log is being read."""
        self.xids.active(Source.KERNEL, active)

    @property
    def incomplete(self) -> bool:
        """Whether NVML answers but a GPU that should be there does not."""
        return self._state is NvmlState.OK and not self.inventory.complete

    def status(self) -> str:
        """One line for ``systemctl status``."""
        if self._state is NvmlState.OK:
            return f"answering: {counted(self.inventory.present, 'GPU')}"
        return f"no GPU data: {self._state.replace('_', ' ')} ({self._detail})"

    def age(self) -> float | None:
        """Seconds since the collection of the data at hand began; None without data."""
        return None if self._snapshot is None else self._clock() - self._snapshot.taken_monotonic

    def refresh_process(self) -> None:
        """Render the metrics of this process anew; called on a clock, never by a scrape."""
        self._process = generate_latest(self._registry)

    def _refresh(self) -> None:
        self._health = render(self._health_samples()).encode()
        self._refresh_counted()

    def _refresh_counted(self) -> None:
        """Render what changes seldom and has many series, if it changed."""
        version = (self.xids.version, self.inventory.version)
        if version != self._counted_at:
            self._counted_at = version
            self._presence = render(self.inventory.samples()).encode()
            self._counted = render(self._counted_samples()).encode()

    def render(self, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
        """The answer to a scrape: puts bytes together, reads no file and asks nobody."""
        self._refresh_counted()
        age, snapshot = self.age(), self._snapshot
        fresh = snapshot is not None and age is not None and age <= self._stale_after
        moment = [SUCCESS(int(fresh and self._state is NvmlState.OK))]
        if age is not None:
            moment.append(AGE(round(age, 6)))
        body = snapshot.body if fresh and snapshot is not None else Packed()
        presence = self._presence if fresh else b""
        rest = b"".join((presence, self._counted, self._health, render(moment).encode(), self._process))
        if gzip_accepted(headers.get("Accept-Encoding", "")):
            return gzipped(body, rest), _GZIPPED
        return body.plain + rest, _PLAIN

    def _health_samples(self) -> Iterator[Sample]:
        yield from (STATE(int(state is self._state), ("state", state)) for state in NvmlState)
        yield STALE_AFTER(self._stale_after)
        if self._last_success is not None:
            yield LAST(round(self._last_success.taken_at, 3))
            yield DURATION(round(self._last_success.duration, 6))
        yield from (WORKERS(number, ("reason", ending)) for ending, number in self._endings.items())
        yield STUCK(self._stuck)

    def _counted_samples(self) -> Iterator[Sample]:
        yield from self.inventory.expected()
        yield from self.xids.samples(self.inventory.by_pci())
        yield from self.xids.dcgm_samples(self.inventory.by_pci())
