"""Keeps a worker running: replaces one that hangs or dies, pauses on request, abandons a stuck one."""

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum

import structlog

from daemons.gpu_exporter.settings import GpuExporterSettings
from daemons.gpu_exporter.snapshot import NvmlState, Snapshot
from daemons.gpu_exporter.worker_process import Spawn, Worker

log = structlog.get_logger()

MAX_ABANDONED = 4
"""Workers stuck in the kernel before no further one is sent after them."""
_FIRST_BACKOFF, _LAST_BACKOFF = 1.0, 30.0
_STEP_MARGIN = 15.0


class Ending(StrEnum):
    """Why a worker was replaced."""

    HUNG = "hung"
    EXITED = "exited"
    FAILED = "failed"
    RESCAN = "rescan"
    RELEASED = "released"


_ON_REQUEST = frozenset({Ending.RESCAN, Ending.RELEASED})


class Events:
    """What a supervisor reports; the default does nothing."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """A worker delivered."""

    def absent(self, state: NvmlState, detail: str) -> None:
        """From now on no worker delivers, because of `state`."""

    def ended(self, ending: Ending) -> None:
        """A worker came to its end."""

    def abandoned(self, number: int) -> None:
        """So many workers are stuck in the kernel at present."""


class Supervisor:
    """Runs one worker after another."""

    def __init__(
        self,
        spawn: Spawn,
        events: Events,
        settings: GpuExporterSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spawn = spawn
        self._events = events
        self._settings = settings
        self._clock = clock
        self._worker: Worker | None = None
        self._stuck: list[Worker] = []
        self._requested: Ending | None = None
        self._useful = False
        self._resume_at = 0.0
        self._due = clock() + _STEP_MARGIN

    async def run(self) -> None:
        """Until cancelled; then ends the worker."""
        backoff = _FIRST_BACKOFF
        try:
            while True:
                await self._pause(self._resume_at - self._clock())
                if self._too_many_stuck():
                    await self._pause(_LAST_BACKOFF)
                    continue
                useful, ending = await self._one_worker()
                self._events.ended(ending)
                backoff = _FIRST_BACKOFF if useful else min(backoff * 2, _LAST_BACKOFF)
                if ending not in _ON_REQUEST:
                    await self._pause(backoff)
        finally:
            await self._end(gently=True)

    async def release(self, settings: GpuExporterSettings) -> None:
        """Close NVML, keep it closed for a while, then go on by `settings`; returns when it is closed."""
        self._settings, hold = settings, settings.release_hold
        self._resume_at = self._clock() + hold
        self._events.absent(NvmlState.RELEASED, f"released for {hold:g} s")
        self._requested = Ending.RELEASED
        await self._end(gently=True)

    async def rescan(self) -> None:
        """Replace the worker by a fresh one, which sees GPUs that came back."""
        self._requested = Ending.RESCAN
        await self._end(gently=True)

    async def _one_worker(self) -> tuple[bool, Ending]:
        """Run a worker to its end; returns whether NVML answered it, and why it ended."""
        self._useful = False
        ending = await self._ending()
        await self._end(gently=ending is not Ending.HUNG)
        return self._useful, self._requested or ending

    async def _ending(self) -> Ending:
        self._requested = None
        try:
            self._worker = worker = await self._spawn()
            if self._clock() >= self._resume_at:
                await self._listen(worker)
        except TimeoutError:
            if self._requested is not None:
                return Ending.HUNG
            self._events.absent(NvmlState.HUNG, "NVML does not return")
            log.error("the NVML worker hangs; replacing it")
            return Ending.HUNG
        except (OSError, ValueError) as error:
            self._events.absent(NvmlState.ERROR, f"no worker: {error}")
            log.error("the NVML worker failed; replacing it", reason=str(error))
            return Ending.FAILED
        except EOFError:
            pass
        return Ending.EXITED

    async def _listen(self, worker: Worker) -> None:
        """Pass on what `worker` delivers until it is ended; it falls silent or ends by an exception."""
        while True:
            patience = self._settings.worker_timeout if self._useful else self._settings.start_timeout
            self._step(patience)
            async with asyncio.timeout(patience):
                snapshot = await worker.next()
            # A frame that was under way while its worker was ended must not undo what was said since.
            if self._worker is not worker:
                raise EOFError
            self._useful = self._useful or snapshot.state is NvmlState.OK
            self._events.snapshot(snapshot)

    async def _end(self, *, gently: bool) -> None:
        worker, self._worker = self._worker, None
        if worker is not None and not await worker.end(gently=gently):
            log.error("an NVML worker cannot be killed, it is stuck in the kernel; leaving it behind")
            self._stuck.append(worker)
            self._events.abandoned(len(self._stuck))
        self._step()

    def _too_many_stuck(self) -> bool:
        alive = [worker for worker in self._stuck if not worker.gone()]
        if len(alive) != len(self._stuck):
            self._stuck = alive
            self._events.abandoned(len(alive))
        return len(alive) >= MAX_ABANDONED

    async def _pause(self, seconds: float) -> None:
        """Wait, in steps short enough for the watchdog; a release during it makes it no shorter."""
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            self._step()
            await asyncio.sleep(min(left, 1.0))
        self._step()

    def progressing(self) -> bool:
        """Whether the loop goes round; a hung worker does not stop it, so it does not end this process."""
        return self._clock() <= self._due

    def _step(self, within: float = 0.0) -> None:
        """The next step is due `within` seconds."""
        self._due = self._clock() + within + _STEP_MARGIN
