"""The load generator: sends each request when it is due, whatever became of those before it.

It runs in a process of its own and does nothing else there: no display, no statistics, no scraping, no
garbage collection. How late it was itself is part of every record.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from math import nan
from time import perf_counter, process_time, time

from daemons.loadtest.client.connection import Pool, Target
from daemons.loadtest.client.exchange import Exchange
from daemons.loadtest.client.frames import Finished, Progress, Ready, Report, StopReason
from daemons.loadtest.client.records import DEAD, Outcome, Records
from daemons.loadtest.load.plan import STAGGER, Closed, Plan
from daemons.loadtest.load.sessions import Request, Session, Workload

REPORT_EVERY = 0.25
SWEEP_EVERY = 0.05
PROBE_EVERY = 0.01
DEAD_AFTER = 3.0
"""Seconds without a sign of life after which failed connections mean that the target is gone."""
DEAD_COUNT = 10
BACK_OFF = 0.1
"""Pause of a closed-loop client after a failure, so that a server that refuses is not hammered."""
TIMER_STEP = 0.001
"""Resolution of uvloop's timers; a shorter delay would spin."""


class Generator:
    """Runs one workload.

    Args:
        plan: what to keep to.
        work: what to send and when.
        target: where.
        secrets: API keys by index.
        emit: takes each report for the conducting process.
    """

    def __init__(
        self,
        plan: Plan,
        work: Workload,
        target: Target,
        secrets: list[str],
        emit: Callable[[Report], None],
    ) -> None:
        self._plan = plan
        self._work = work
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(target, secrets, plan.timeouts.connect, self._on_finished)
        self._limit = plan.load.concurrency
        self._backlog: deque[tuple[Session, float]] = deque()
        self._records = Records()
        self._lags: array[float] = array("f")
        self._start = 0.0
        self._next: float | None = None
        self._more = True  # sessions may still begin
        self._stopped = False
        self._sending_ended = 0.0
        self._reason: StopReason = "complete"
        self._active = 0  # sessions under way, those that think included
        self._secrets = [secret for secret in secrets if secret]
        self._reasons: dict[str, str] = {}
        self._known_reasons: set[Outcome] = set()
        self._sent = self._tokens = self._planned = 0
        self._output_tokens = 0  # of answers that ended well
        self._streamed_tokens = self._streamed_events = 0  # of those that were streamed
        self._sent_at = 0.0
        self._alive_at = 0.0
        self._dead_in_row = 0
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Send everything, wait for what is in flight, report."""
        self._start = self._alive_at = self._sent_at = perf_counter()
        self._emit(Ready(types=self._work.types, epoch=time(), notes=self._work.notes))
        background = [asyncio.create_task(self._probe()), asyncio.create_task(self._sweep())]
        if self._work.starts is None:
            if self._plan.requests is None:
                self._loop.call_later(self._plan.seconds, self.drain, "complete")
            clients = self._limit or 1
            for client in range(clients):
                self._loop.call_later(STAGGER * client / clients, self._first_session)
        else:
            self._tick(self._work.starts)
        await self._ended.wait()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        self._pool.close()
        self._report()
        ended = perf_counter() - self._start
        self._emit(
            Finished(
                reason=self._reason,
                sending_ended=self._sending_ended,
                ended=ended,
                used_tokens=self._tokens,
            )
        )

    def drain(self, reason: StopReason = "asked") -> None:
        """Send nothing more; what is in flight may end."""
        if not self._stopped:
            self._stopped = True
            self._reason = reason
            self._no_more()
            self._give_up_backlog()
        self._end_if_done()

    def cut(self) -> None:
        """Send nothing more and end what is in flight."""
        self.drain()
        for exchange in list(self._pool.under_way):
            self._pool.abort(exchange, Outcome.ABANDONED)
        self._ended.set()

    def _no_more(self) -> None:
        if self._more:
            self._more = False
            self._sending_ended = perf_counter() - self._start

    def _end_if_done(self) -> None:
        if (
            not self._more
            and not self._backlog
            and not (self._pool.under_way if self._stopped else self._active)
        ):
            self._ended.set()

    def _give_up_backlog(self) -> None:
        """What was due and could not be sent belongs in the result: leaving it out would flatter it."""
        now = perf_counter()
        while self._backlog:
            session, intended = self._backlog.popleft()
            request = next(session, None)
            if request is not None:
                exchange = Exchange(request, session, intended, nan, nan)
                self._records.add(*exchange.record(Outcome.ABANDONED, 0, now, self._start))

    # -- sending

    def _tick(self, starts: Iterator[float]) -> None:
        """Send what is due by now, and come back when the next is."""
        while not self._stopped:
            offset = self._next if self._next is not None else next(starts, None)
            if offset is None:
                self._no_more()
                self._end_if_done()
                return
            now = perf_counter()
            intended = self._start + offset
            if intended > now:
                self._next = offset
                self._loop.call_later(max(intended - now, TIMER_STEP), self._tick, starts)
                return
            self._next = None
            session = next(self._work.sessions, None)
            if session is None:
                starts = iter(())
            elif self._limit is not None and self._active >= self._limit:
                self._backlog.append((session, intended))
            else:
                self._active += 1
                self._send_next(session, intended, intended)

    def _first_session(self) -> None:
        self._begin_session(perf_counter())
        self._end_if_done()

    def _begin_session(self, intended: float) -> None:
        """Closed loop: a client begins its next session."""
        session = next(self._work.sessions, None) if self._more else None
        if session is None:
            self._no_more()
        else:
            self._active += 1
            self._send_next(session, intended, intended)

    def _send_next(self, session: Session, intended: float, due: float) -> None:
        """Send the next turn of `session`, or go on to the next session."""
        request = None if self._stopped else next(session, None)
        if request is not None and self._within_budget(request):
            self._sent += 1
            self._planned += request.planned_tokens
            self._sent_at = perf_counter()
            self._pool.send(Exchange(request, session, intended, due, self._sent_at))
            return
        self._active -= 1
        if self._backlog:
            session, intended = self._backlog.popleft()
            self._active += 1
            self._send_next(session, intended, max(intended, due))
        elif self._work.starts is None and self._more:
            self._begin_session(due)
        self._end_if_done()

    def _within_budget(self, request: Request) -> bool:
        budget = self._plan.budget
        if self._sent >= budget.requests:
            self.drain("requests budget")
        elif self._tokens + self._planned + request.planned_tokens > budget.tokens:
            self.drain("tokens budget")
        return not self._stopped

    # -- what comes back

    def _on_finished(self, exchange: Exchange, outcome: Outcome, status: int) -> None:
        now = perf_counter()
        record, gaps = exchange.record(outcome, status, now, self._start)
        self._records.add(record, gaps)
        self._planned -= exchange.request.planned_tokens
        if outcome is Outcome.OK:
            self._count(exchange.events, record.output_tokens)
        elif exchange.reason and outcome not in self._known_reasons:
            self._known_reasons.add(outcome)
            self._reasons[outcome.name.lower()] = self._without_secrets(exchange.reason)
        known = record.prompt_tokens >= 0
        self._tokens += (
            record.prompt_tokens + record.output_tokens if known else exchange.request.planned_tokens
        )
        self._watch_for_death(outcome, exchange, now)
        failed = outcome not in {Outcome.OK, Outcome.CANCELLED}
        pause = 0.0
        if isinstance(self._plan.load, Closed):
            pause = max(self._plan.load.think_time, BACK_OFF if failed else 0.0)
        session: Session = iter(()) if failed else exchange.session
        if pause and not self._stopped:
            self._loop.call_later(pause, self._send_next, session, now + pause, now + pause)
        else:
            self._send_next(session, now, now)

    def _count(self, events: int, tokens: int) -> None:
        tokens = events if tokens < 0 else tokens
        self._output_tokens += tokens
        if events:
            self._streamed_events += events
            self._streamed_tokens += tokens

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _watch_for_death(self, outcome: Outcome, exchange: Exchange, now: float) -> None:
        if (
            exchange.touched > exchange.sent
        ):  # an answer that takes too long is a sign of life for as long as it comes
            self._alive_at = max(self._alive_at, min(exchange.touched, now))
        if outcome not in DEAD:
            self._alive_at = now
            self._dead_in_row = 0
            return
        self._dead_in_row += 1
        if self._dead_in_row >= DEAD_COUNT and now - self._alive_at > DEAD_AFTER:
            self.drain("target died")

    # -- housekeeping

    async def _sweep(self) -> None:
        """End what takes too long, and report."""
        limits = self._plan.timeouts
        reported = 0.0
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            now = perf_counter()
            for exchange in list(self._pool.under_way):
                if now - exchange.sent > limits.total:
                    self._pool.abort(exchange, Outcome.TIMEOUT)
                elif exchange.touched > exchange.sent and now - exchange.touched > limits.stall:
                    self._pool.abort(exchange, Outcome.STALL)
            if not self._more and not self._backlog and now - self._sent_at > limits.drain:
                self.drain("complete")
                self.cut()
            if now - reported >= REPORT_EVERY:
                reported = now
                self._report()

    async def _probe(self) -> None:
        """Measure how late the event loop runs what is due."""
        while True:
            before = perf_counter()
            await asyncio.sleep(PROBE_EVERY)
            self._lags.append(max(0.0, perf_counter() - before - PROBE_EVERY))

    def _report(self) -> None:
        records, self._records = self._records, Records()
        lags, self._lags = self._lags, array("f")
        reasons, self._reasons = self._reasons, {}
        under_way = sum(exchange.events for exchange in self._pool.under_way)
        per_event = self._streamed_tokens / self._streamed_events if self._streamed_events else 1.0
        self._emit(
            Progress(
                at=perf_counter() - self._start,
                in_flight=len(self._pool.under_way),
                backlog=len(self._backlog),
                sent=self._sent,
                tokens=self._output_tokens + under_way * per_event,
                cpu_seconds=process_time(),
                loop_lags=lags.tobytes(),
                records=dict(records.pack()),
                reasons=reasons,
            )
        )
