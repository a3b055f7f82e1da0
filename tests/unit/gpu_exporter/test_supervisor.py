"""Replacing workers: hung, dead, stuck in the kernel; and the age of what they said."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from daemons.gpu_exporter import supervisor as module
from daemons.gpu_exporter.packing import pack
from daemons.gpu_exporter.page import Page
from daemons.gpu_exporter.settings import GpuExporterSettings
from daemons.gpu_exporter.snapshot import NvmlState, Snapshot, decode, encode, payload_length
from daemons.gpu_exporter.supervisor import MAX_ABANDONED, Ending, Supervisor

SETTINGS = GpuExporterSettings(
    interval=0.05, stale_after=0.1, worker_timeout=0.1, start_timeout=0.1, release_hold=0
)
PATIENT = SETTINGS.model_copy(update={"worker_timeout": 60.0, "start_timeout": 60.0})
GOOD = Snapshot(state=NvmlState.OK, body=pack(b"gpu_data 1\n"))


class FakeWorker:
    """Delivers `frames`, then hangs; `takes` seconds to die of SIGKILL, unless `immortal`."""

    def __init__(self, frames: int = 0, immortal: bool = False) -> None:
        self.frames = frames
        self.immortal = immortal
        self.ended = asyncio.Event()
        self.takes = 0.0

    async def next(self) -> Snapshot:
        if self.frames:
            self.frames -= 1
            return GOOD
        await self.ended.wait()
        raise EOFError

    async def end(self, *, gently: bool) -> bool:
        await asyncio.sleep(self.takes)
        self.ended.set()
        return not self.immortal

    def gone(self) -> bool:
        return not self.immortal


class Recorded(Page):
    def __init__(self) -> None:
        super().__init__(SETTINGS, CollectorRegistry())
        self.endings: asyncio.Queue[Ending] = asyncio.Queue()

    def ended(self, ending: Ending) -> None:
        super().ended(ending)
        self.endings.put_nowait(ending)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(module, "_LAST_BACKOFF", 0.01)


class Running:
    def __init__(self, workers: list[FakeWorker], settings: GpuExporterSettings = SETTINGS) -> None:
        self.workers = workers
        self.spawned = 0
        self.page = Recorded()
        self.supervisor = Supervisor(self.spawn, self.page, settings)

    async def spawn(self) -> FakeWorker:
        worker = self.workers[min(self.spawned, len(self.workers) - 1)]
        self.spawned += 1
        return worker

    async def __aenter__(self) -> "Running":
        self.task = asyncio.create_task(self.supervisor.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def ending(self) -> Ending:
        return await asyncio.wait_for(self.page.endings.get(), 30)


async def test_a_hung_worker_is_replaced() -> None:
    async with Running([FakeWorker(frames=1), FakeWorker(frames=1)]) as running:
        assert await running.ending() is Ending.HUNG
        assert await running.ending() is Ending.HUNG
        assert running.spawned >= 2
        assert running.supervisor.progressing()


async def test_workers_stuck_in_the_kernel_are_left_behind_but_not_without_bound() -> None:
    async with Running([FakeWorker(immortal=True)]) as running:
        for _ in range(MAX_ABANDONED):
            await running.ending()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(running.page.endings.get(), 0.5)
        assert running.spawned == MAX_ABANDONED, "none is started, and none is said to have ended"
        assert f"gpu_exporter_workers_stuck {MAX_ABANDONED}\n".encode() in running.page.render({})[0]
        assert running.supervisor.progressing()
        running.workers[0].immortal = False
        await running.ending()
        await running.ending()
        assert running.spawned > MAX_ABANDONED


async def test_a_loop_that_stands_still_starves_the_watchdog() -> None:
    now = [100.0]
    running = Running([FakeWorker(frames=1)])
    patient = SETTINGS.model_copy(update={"worker_timeout": 10.0, "start_timeout": 60.0})
    running.supervisor = Supervisor(running.spawn, running.page, patient, clock=lambda: now[0])
    async with running:
        await asyncio.wait_for(running.page.heard.wait(), 30)
        now[0] += 20.0
        assert running.supervisor.progressing(), "a worker may be silent for its timeout"
        now[0] += 6.0
        assert not running.supervisor.progressing()


async def test_release_ends_the_worker_and_shows_no_data() -> None:
    async with Running([FakeWorker(frames=1), FakeWorker(frames=1)], PATIENT) as running:
        await asyncio.wait_for(running.page.heard.wait(), 30)
        await running.supervisor.release(SETTINGS.model_copy(update={"release_hold": 60.0}))
        assert await running.ending() is Ending.RELEASED
        assert b'gpu_exporter_nvml_state{state="released"} 1' in running.page.render({})[0]
        assert b"gpu_data" not in running.page.render({})[0]
        assert running.spawned == 1


async def test_a_worker_that_hangs_while_it_is_released_is_released() -> None:
    stubborn = FakeWorker(frames=1)
    stubborn.takes = 4.0
    async with Running([stubborn], SETTINGS.model_copy(update={"worker_timeout": 2.0})) as running:
        await asyncio.wait_for(running.page.heard.wait(), 30)
        await running.supervisor.release(SETTINGS.model_copy(update={"release_hold": 60.0}))
        assert await running.ending() is Ending.RELEASED
        assert b'gpu_exporter_nvml_state{state="released"} 1' in running.page.render({})[0]


async def test_a_worker_that_cannot_be_started() -> None:
    running = Running([FakeWorker()])

    async def refuse() -> FakeWorker:
        raise OSError("no more processes")

    running.supervisor = Supervisor(refuse, running.page, SETTINGS)
    async with running:
        assert await running.ending() is Ending.FAILED
        assert b'gpu_exporter_nvml_state{state="error"} 1' in running.page.render({})[0]


def test_data_vanish_when_old_and_the_age_says_how_old() -> None:
    now = [100.0]
    page = Page(GpuExporterSettings(), CollectorRegistry(), clock=lambda: now[0])
    page.snapshot(
        Snapshot(state=NvmlState.OK, body=pack(b"gpu_data 1\n"), taken_monotonic=99.0, taken_at=5.0)
    )
    assert b"gpu_data 1\n" in page.render({})[0]
    assert b"gpu_exporter_collection_success 1\n" in page.render({})[0]
    now[0] = 104.5
    text, _ = page.render({})
    assert b"gpu_data" not in text
    assert b"gpu_up" not in text
    assert b"gpu_present" not in text
    assert b"gpu_exporter_snapshot_age_seconds 5.5\n" in text
    assert b"gpu_exporter_collection_success 0\n" in text
    assert b"gpu_exporter_last_success_timestamp_seconds 5.0\n" in text


def test_the_last_success_is_told_when_nvml_fails() -> None:
    page = Page(GpuExporterSettings(), CollectorRegistry(), clock=lambda: 100.0)
    page.snapshot(Snapshot(state=NvmlState.OK, taken_monotonic=99.0, taken_at=5.0))
    page.snapshot(Snapshot(state=NvmlState.NO_DRIVER, taken_monotonic=100.0, taken_at=6.0))
    text, _ = page.render({})
    assert b"gpu_exporter_last_success_timestamp_seconds 5.0\n" in text
    assert b"gpu_exporter_snapshot_age_seconds" not in text


def test_frames() -> None:
    frame = encode(GOOD)
    assert payload_length(frame[:4]) == len(frame) - 4
    assert decode(frame[4:]) == GOOD
    with pytest.raises(ValueError, match="a frame of"):
        payload_length(b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="not a snapshot"):
        decode(b"garbage")
