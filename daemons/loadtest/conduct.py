"""Conducts one run: starts the generator process, takes its reports, scrapes metrics, obeys the operator."""

import asyncio
import contextlib
import secrets
import signal
import sys
import time
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from daemons.loadtest.client.connection import Target
from daemons.loadtest.client.frames import (
    Command,
    Failed,
    Finished,
    FrameBuffer,
    Order,
    Progress,
    Ready,
    Report,
    decode_report,
    encode,
)
from daemons.loadtest.client.records import Records
from daemons.loadtest.load.plan import Plan
from daemons.loadtest.measure.analysis import analyse
from daemons.loadtest.measure.attribution import attribute
from daemons.loadtest.measure.results import Result
from daemons.loadtest.measure.samples import Gauge, Measured
from daemons.loadtest.measure.scrape import Scraper, Source
from daemons.runtime.errors import Fatal
from daemons.runtime.notify import child_environment

_READ = 1 << 18
_MANY = 50_000
"""Requests whose result takes more than a moment."""
_GRACE = 5.0
"""Seconds the generator has to report after it was told to end at once."""


class Observer(Protocol):
    """Watches a run."""

    def begin(self, planned: float | None) -> None:
        """The first request is about to be sent; `planned`: seconds of sending, where they are known."""

    def progress(self, records: Records, progress: Progress) -> None:
        """Some requests ended; `records` holds only these."""

    def end(self) -> None:
        """The run is over."""

    def note(self, text: str) -> None:
        """Something that takes a while is under way."""


class Job(msgspec.Struct, kw_only=True):
    """What a run needs beyond its plan. `secrets` are API keys in the order of the plan's keys."""

    url: str
    target: Target
    model: str
    secrets: list[str]
    sources: list[Source] = []


class _Run:
    """Collects the reports of one generator."""

    def __init__(self, job: Job, plan: Plan, observer: Observer) -> None:
        self._observer = observer
        self.measured = Measured(
            plan=plan,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            target=job.url,
            model=job.model,
            types=[],
            records=Records(),
            loop_lags=array("f"),
            gauges=[],
            stopped_by="",
            sending_ended=0.0,
            ended=0.0,
        )
        self.epoch = time.time()

    def deliver(self, body: bytes) -> None:
        """Take a frame."""
        self._take(decode_report(body))

    def _take(self, report: Report) -> None:
        measured = self.measured
        if isinstance(report, Ready):
            measured.types, self.epoch, measured.notes = report.types, report.epoch, report.notes
            self._observer.begin(measured.plan.sending_seconds)
        elif isinstance(report, Progress):
            new = Records()
            new.extend(report.records)
            measured.records.extend(report.records)
            measured.loop_lags.frombytes(report.loop_lags)
            measured.gauges.append(Gauge(report.at, report.in_flight, report.backlog, report.cpu_seconds))
            for outcome, reason in report.reasons.items():
                measured.reasons.setdefault(outcome, reason)
            self._observer.progress(new, report)
        elif isinstance(report, Finished):
            measured.stopped_by = report.reason
            measured.sending_ended, measured.ended = report.sending_ended, report.ended
            measured.used_tokens = report.used_tokens
        elif isinstance(report, Failed):
            raise Fatal(report.message, report.exit_code)


async def conduct(job: Job, plan: Plan, observer: Observer) -> Result:
    """Run `plan` against `job`'s target and return the result.

    SIGINT once lets what is in flight end, twice or SIGTERM ends it at once; either way there is a result,
    which says that it was asked for even when the signal came while the result was made.

    Raises:
        Fatal: the workload cannot be made, or the generator was lost.
    """
    run = _Run(job, plan, observer)
    scraper = Scraper(job.sources)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "daemons.loadtest.client",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=child_environment(),
        start_new_session=True,
    )
    with _obeying(process) as asked:
        scraping = asyncio.create_task(scraper.run())
        try:
            order = Order(
                target=job.target,
                plan=plan.model_dump_json(),
                model=job.model,
                secrets=job.secrets or [""],
                nonce=secrets.token_hex(4),
            )
            assert process.stdin is not None  # noqa: S101 - asked for above
            process.stdin.write(encode(order))
            await _collect(process, run)
        finally:
            scraping.cancel()
            await asyncio.gather(scraping, return_exceptions=True)
            observer.end()
            await _reap(process)
        if not run.measured.stopped_by:
            raise Fatal(f"the load generator ended unexpectedly (exit status {process.returncode})")
        if len(run.measured.records) > _MANY:
            observer.note("The load is over; its result is being worked out.")
        await scraper.last()
        result = await asyncio.to_thread(analyse, run.measured)
        snapshots = scraper.rebase(run.epoch)
        pace = result.overall.latencies.get("tpot")
        result.attribution = attribute(snapshots, scraper.problems, run.measured.records, result.window, pace)
        if asked.is_set():
            result.stopped_by = "asked"
        return result


async def _collect(process: asyncio.subprocess.Process, run: _Run) -> None:
    assert process.stdout is not None  # noqa: S101 - asked for in `conduct`
    frames = FrameBuffer(run.deliver)
    while data := await process.stdout.read(_READ):
        frames.feed(data)


@contextlib.contextmanager
def _obeying(process: asyncio.subprocess.Process) -> Iterator[asyncio.Event]:
    """Turn the operator's signals into commands for the generator; the event is set when one came."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def obey(command: Command) -> None:
        _command(process, "cut" if asked.is_set() else command)
        asked.set()

    loop.add_signal_handler(signal.SIGINT, obey, "drain")
    loop.add_signal_handler(signal.SIGTERM, obey, "cut")
    try:
        yield asked
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


def _command(process: asyncio.subprocess.Process, command: Command) -> None:
    if process.stdin is not None and not process.stdin.is_closing():
        process.stdin.write(encode(command))


async def _reap(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _GRACE)
    except TimeoutError:
        process.kill()
        await process.wait()
