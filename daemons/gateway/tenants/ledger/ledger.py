"""Writes the ledger in a thread of its own: requests only leave notes for it, and never wait."""

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import structlog

from daemons.gateway.tenants.ledger import book
from daemons.gateway.tenants.ledger.book import Batch, ClosedRow, Opened
from daemons.gateway.tenants.ledger.row import closed_row

if TYPE_CHECKING:
    from daemons.gateway.exchange import Exchange
    from daemons.gateway.relay.usage import TokenCounts

log = structlog.get_logger()

T = TypeVar("T")

_GATHER_SECONDS = 0.1
_RETRY_SECONDS = 1.0
_ROWS_AT_ONCE = 2000
_DELETED_AT_ONCE = 1000
_UPKEEP_SECONDS = 60.0
_LAST_TRIES = 3
_DAY_MICROSECONDS = 86_400_000_000


class _Question(Generic[T]):
    """Something asked of the file, between two rows of the queue."""

    def __init__(self, question: Callable[[sqlite3.Connection], T]) -> None:
        self._question = question
        self.future: Future[T] = Future()

    def answer(self, connection: sqlite3.Connection) -> None:
        if self._open():
            try:
                self.future.set_result(self._question(connection))
            except sqlite3.Error as error:
                self.future.set_exception(error)

    def refuse(self) -> None:
        if self._open():
            self.future.set_exception(sqlite3.OperationalError("the ledger cannot be written at present"))

    def _open(self) -> bool:
        """Whether somebody waits for an answer, and cannot give up from now on: that would end the ledger."""
        return not self.future.done() and self.future.set_running_or_notify_cancel()


class Ledger:
    """Takes note of requests on the event loop, and writes them within 0.2 s.

    While the file cannot be written the notes are kept, up to `capacity` of them.

    Attributes:
        written: rows written.
        dropped: rows given up because too many waited.
        failures: attempts to write that failed.
        failing: the latest one failed.
    """

    def __init__(self, path: Path, keep_days: int, capacity: int = 200_000) -> None:
        self._path = path
        self._keep = keep_days * _DAY_MICROSECONDS
        self._capacity = capacity
        self._worker = time.time_ns()
        self._mark = process_mark(os.getpid())
        self._number = 0
        self._unwritten: dict[int, Exchange] = {}
        self._closed: deque[tuple[ClosedRow, int] | _Question[Any]] = deque()
        self._due = 0
        self._batch: Batch | None = None
        self._batch_number = 0
        self._connection: sqlite3.Connection | None = None
        self._upkeep_due = 0.0
        self._tidying = False
        self._awake = False
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self.written = 0
        self.dropped = 0
        self.failures = 0
        self.failing = False

    def start(self) -> None:
        """Begin to write."""
        self._stir()
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and end; blocks for some seconds where the file cannot be written."""
        self._ending.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def began(self, exchange: "Exchange") -> None:
        """A request was let in."""
        self._number = exchange.entry = number = self._number + 1
        self._unwritten[number] = exchange
        if not self._awake:
            self._stir()

    def ended(
        self, exchange: "Exchange", counts: "TokenCounts", outcome: str, now: float, *, estimated: bool
    ) -> None:
        """A request has ended at loop time `now`; one that was not let in is none of the ledger's."""
        number = exchange.entry
        if not number:
            return
        unseen = self._unwritten.pop(number, None) is not None
        if len(self._closed) >= self._capacity:
            self.dropped += 1
            return
        row = closed_row(exchange, counts, outcome, now, estimated=estimated)
        self._closed.append((row, 0 if unseen else number))
        if not self._awake:
            self._stir()

    @property
    def pending(self) -> int:
        """Rows of ended requests that wait to be written."""
        batch = self._batch
        return len(self._closed) + (len(batch.closed) if batch is not None else 0)

    @property
    def delay(self) -> float:
        """Seconds for which the oldest of them has waited."""
        batch = self._batch
        if batch is not None and batch.closed:
            oldest = batch.closed[0]
        elif self._closed and not isinstance(first := self._closed[0], _Question):
            oldest = first[0]
        else:
            return 0.0
        return max(0.0, time.time() - oldest[1] / 1e6)

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> "Future[T]":
        """Call `question` in the ledger's thread when everything noted so far is written, and nothing later.

        The future fails with `sqlite3.Error` where the file cannot be used.
        """
        asked = _Question(question)
        self._closed.append(asked)
        self._stir()
        return asked.future

    def _stir(self) -> None:
        self._awake = True
        self._wake.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._wake.wait(_UPKEEP_SECONDS)
            # Many requests become one transaction.
            self._ending.wait(_GATHER_SECONDS)
            good = self._write_all()
            if good:
                self._keep_up()
            if not good:
                self._ending.wait(_RETRY_SECONDS)
            elif not self._tidying:
                self._rest()
        for _ in range(_LAST_TRIES):
            if self._write_all(last=True):
                break
            time.sleep(_RETRY_SECONDS)
        else:
            log.error(
                "the ledger could not be written at the end; the journal has these requests",
                rows=self.pending,
            )
        self._refuse_questions()
        self._disconnect()

    def _rest(self) -> None:
        """Sleep until the next note, unless one has just come."""
        self._wake.clear()
        self._awake = False
        if self._closed or self._unwritten:
            self._stir()

    def _write_all(self, *, last: bool = False) -> bool:
        """Write everything noted so far; whether that went well.

        What comes meanwhile is gathered for the next time: a batch costs as much as ten of its rows.
        """
        self._due = len(self._closed)
        try:
            while True:
                if self._batch is None:
                    self._batch = self._next_batch(last=last)
                if self._batch is None:
                    if self._answered():
                        continue
                    self._recovered()
                    return True
                book.write(self._connected(), self._worker, self._batch, self._mark)
                self.written += len(self._batch.closed)
                self._batch = None
        except sqlite3.Error as error:
            self._failed(error)
            return False
        except (OverflowError, ValueError):
            # No SQLite file takes such a row, now or later.
            log.exception("rows that the ledger cannot hold")
            self.dropped += len(self._batch.closed) if self._batch is not None else 0
            self._batch = None
            self._disconnect()
            return False

    def _next_batch(self, *, last: bool) -> Batch | None:
        opened = self._opened() if not last else []
        closed: list[ClosedRow] = []
        forget: list[int] = []
        # Only this thread takes from the queue.
        queue = self._closed
        for _ in range(min(self._due, _ROWS_AT_ONCE)):
            entry = queue[0]
            if isinstance(entry, _Question):
                break
            row, number = entry
            queue.popleft()
            closed.append(row)
            if number:
                forget.append(number)
        if not opened and not closed:
            return None
        self._due -= len(closed)
        self._batch_number += 1
        return Batch(self._batch_number, opened, closed, forget)

    def _opened(self) -> list[Opened]:
        """Requests that have been on their way for a while; most end before they need a row of their own."""
        now, wall = time.monotonic(), time.time()
        rows = []
        for number, exchange in list(self._unwritten.items()):
            if now - exchange.arrived < _GATHER_SECONDS:
                break
            # The event loop may end it at this moment: whoever pops it decides.
            if self._unwritten.pop(number, None) is not None:
                rows.append(_opened(number, exchange, wall - now))
        return rows

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = book.connect(self._path)
            try:
                book.register(connection, self._worker, self._mark)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answered(self) -> bool:
        """Answer the question at the head of the queue; whether there was one."""
        if not self._due or not isinstance(first := self._closed[0], _Question):
            return False
        first.answer(self._connected())
        self._closed.popleft()
        self._due -= 1
        return True

    def _refuse_questions(self) -> None:
        for entry in list(self._closed):
            if isinstance(entry, _Question):
                entry.refuse()

    def _failed(self, error: sqlite3.Error) -> None:
        self._refuse_questions()
        self.failures += 1
        if not self.failing:
            log.error("the ledger cannot be written; requests go on", reason=str(error), file=str(self._path))
        self.failing = True
        self._disconnect()

    def _recovered(self) -> None:
        if self.failing:
            log.info("the ledger is written again", rows=self.written)
        self.failing = False

    def _keep_up(self) -> None:
        """Close what dead workers left open, and forget what is too old; a little at a time."""
        if not self._tidying and time.monotonic() < self._upkeep_due:
            return
        now = time.time_ns() // 1000
        try:
            connection = self._connected()
            lost = book.close_lost(connection, self._worker, now, is_process)
            if lost:
                log.warning("requests ended with a gateway that was killed", requests=lost)
            self._tidying = book.forget_before(connection, now - self._keep, _DELETED_AT_ONCE)
        except sqlite3.Error as error:
            self._tidying = False
            self._failed(error)
        self._upkeep_due = time.monotonic() + _UPKEEP_SECONDS


def _opened(number: int, exchange: "Exchange", offset: float) -> Opened:
    return Opened(
        number,
        int((exchange.arrived + offset) * 1e6),
        exchange.tenant.alias,
        exchange.model,
        exchange.endpoint,
        exchange.engine.name if exchange.engine is not None else None,
        exchange.request_id,
        exchange.stream,
    )


def process_mark(pid: int) -> str:
    """What tells a process from a later one of the same id: the time of its start (proc(5), field 22)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def is_process(pid: int, mark: str) -> bool:
    """Whether the process of this id and mark still runs."""
    return bool(mark) and process_mark(pid) == mark
