"""The ledger's file: its tables, what is written at once, what is read from it."""

import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1
_BUSY_SECONDS = 1.0
_PAGES_AT_ONCE = 256
_ROWS_PER_STATEMENT = 64
_CACHE_KIB = 512
"""Of the file's pages: rows go to the ends of their tables, and only those of open requests are met again."""
LOST = "gateway_lost"
_DAY = 86_400_000_000

_SCHEMA = """
CREATE TABLE requests (
    started INTEGER NOT NULL, ended INTEGER NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL,
    endpoint TEXT NOT NULL, engine TEXT, request_id TEXT NOT NULL, stream INTEGER NOT NULL,
    outcome TEXT NOT NULL, prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL,
    estimated INTEGER NOT NULL, queued INTEGER NOT NULL, first INTEGER
);
CREATE TABLE opened (
    worker INTEGER NOT NULL, number INTEGER NOT NULL, started INTEGER NOT NULL, key TEXT NOT NULL,
    model TEXT NOT NULL, endpoint TEXT NOT NULL, engine TEXT, request_id TEXT NOT NULL,
    stream INTEGER NOT NULL, PRIMARY KEY (worker, number)
) WITHOUT ROWID;
CREATE TABLE days (
    day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL,
    failed INTEGER NOT NULL, prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL,
    PRIMARY KEY (day, key, model)
) WITHOUT ROWID;
CREATE TABLE workers (
    worker INTEGER PRIMARY KEY, pid INTEGER NOT NULL, mark TEXT NOT NULL, batch INTEGER NOT NULL
);
CREATE TABLE points (
    engine TEXT PRIMARY KEY, at INTEGER NOT NULL, row INTEGER NOT NULL, generation INTEGER NOT NULL,
    counter INTEGER NOT NULL, prompt INTEGER NOT NULL, completion INTEGER NOT NULL
);
"""


class Closed(NamedTuple):
    """A request that has ended. Times are microseconds of POSIX time; `queued` and `first` are durations."""

    started: int
    ended: int
    key: str
    model: str
    endpoint: str
    engine: str | None
    request_id: str
    stream: bool
    outcome: str
    prompt: int
    cached: int
    completion: int
    estimated: bool
    queued: int
    first: int | None


ClosedRow = tuple[int, int, str, str, str, str | None, str, int, str, int, int, int, int, int, int | None]
"""The fields of `Closed` as SQLite takes them."""


class Opened(NamedTuple):
    """A request that is on its way."""

    number: int
    started: int
    key: str
    model: str
    endpoint: str
    engine: str | None
    request_id: str
    stream: bool


class Point(NamedTuple):
    """Where an engine's counters and the ledger stood together.

    `counter` is the sum of the engine's token counters as they were; `prompt` and `completion` are its tokens
    less its supervisor's own, and less what the ledger had yet to be told of requests in flight.
    """

    engine: str
    at: int
    row: int
    generation: int
    counter: int
    prompt: int
    completion: int


class Batch(NamedTuple):
    """What is written at once, or not at all.

    Attributes:
        number: counts the batches of a worker.
        opened: requests that began and are still on their way.
        closed: requests that have ended.
        forget: numbers of those among them that had been written as opened.
    """

    number: int
    opened: Sequence[Opened]
    closed: Sequence[ClosedRow]
    forget: Sequence[int]


class UsageRow(NamedTuple):
    """What was used; a name is None where the rows are not told apart by it."""

    day: str | None
    key: str | None
    model: str | None
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


def connect(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """The ledger in `path`, made where it is not there yet.

    Raises:
        sqlite3.Error: it cannot be opened, or was written by a later release.
    """
    uri = f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        if not readonly:
            _prepare(connection)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise sqlite3.DatabaseError(
                f"the ledger has version {version}, this release knows version {VERSION}"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    # Takes effect only before the first table.
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    # Its answer is read: a statement that has not come to its end would stand in the way of a commit.
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    # The file stays whole at every kill; only a power cut may take back the latest commits.
    connection.execute("PRAGMA synchronous = NORMAL")
    with transaction(connection):
        if connection.execute("PRAGMA user_version").fetchone() == (0,):
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def register(connection: sqlite3.Connection, worker: int, mark: str) -> None:
    """`worker` begins to write."""
    connection.execute(
        "INSERT INTO workers VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING", (worker, os.getpid(), mark)
    )


def write(connection: sqlite3.Connection, worker: int, batch: Batch, mark: str = "") -> None:
    """Write `batch`, unless it was written already. `mark` is the worker's, in case nobody knows it any more.

    Raises:
        sqlite3.Error: it was not written; when in doubt, call again.
    """
    with transaction(connection):
        # The file may have been put in place of another one, which knew the worker.
        new = connection.execute(
            "INSERT INTO workers VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET batch = excluded.batch WHERE batch < excluded.batch",
            (worker, os.getpid(), mark, batch.number),
        ).rowcount
        if not new:
            return
        _many(connection, "INSERT INTO opened VALUES {}", [(worker, *row) for row in batch.opened])
        _many(connection, "INSERT INTO requests VALUES {}", batch.closed)
        _many(
            connection,
            "DELETE FROM opened WHERE (worker, number) IN (VALUES {})",
            [(worker, number) for number in batch.forget],
        )
        _many(
            connection,
            "INSERT INTO days VALUES {} ON CONFLICT DO UPDATE SET "
            "requests = requests + excluded.requests, failed = failed + excluded.failed, "
            "prompt = prompt + excluded.prompt, cached = cached + excluded.cached, "
            "completion = completion + excluded.completion",
            _by_day(batch.closed),
        )


def _many(connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Execute `statement` for all `rows`, which take the place of its braces, many at a time.

    `executemany` gives up the interpreter's lock once a row, and the event loop then waits for this thread as
    often: at full load that cost more than all else here. The connection keeps each statement ready, and one
    of a hundred rows takes as many KB: as many rows at once as a power of two, so that there are few of them.
    """
    start = 0
    while left := len(rows) - start:
        count = min(_ROWS_PER_STATEMENT, 1 << left.bit_length() - 1)
        values: list[Any] = []
        for row in rows[start : start + count]:
            values += row
        start += count
        connection.execute(_sized(statement, len(rows[0]), count), values)


@lru_cache
def _sized(statement: str, columns: int, rows: int) -> str:
    marks = f"({', '.join('?' * columns)})"
    return statement.format(", ".join([marks] * rows))


def _by_day(rows: Sequence[ClosedRow]) -> list[tuple[Any, ...]]:
    groups: dict[tuple[int, str, str], list[ClosedRow]] = defaultdict(list)
    for row in rows:
        groups[row[1] // _DAY, row[2], row[3]].append(row)
    return [(_day(day), *names, *_sums(group)) for (day, *names), group in groups.items()]


def _sums(rows: Sequence[ClosedRow]) -> tuple[int, int, int, int, int]:
    """Requests, failed ones, and their tokens: prompt, cached, completion."""
    failed = len(rows) - [row[8] for row in rows].count("ok")
    prompt, cached, completion = (sum(map(itemgetter(column), rows)) for column in (9, 10, 11))
    return len(rows), failed, prompt, cached, completion


@lru_cache(4)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * 86_400, UTC).strftime("%Y-%m-%d")


def close_lost(
    connection: sqlite3.Connection, worker: int, now: int, lives: Callable[[int, str], bool]
) -> int:
    """Close what other workers left open that are no more; how many requests that were.

    Their tokens are not known: what the engines worked for them shows in the reconciliation.
    """
    others = connection.execute(
        "SELECT worker, pid, mark FROM workers WHERE worker <> ?", (worker,)
    ).fetchall()
    gone = [(other,) for other, pid, mark in others if not lives(pid, mark)]
    if not gone:
        return 0
    with transaction(connection):
        before = connection.total_changes
        connection.executemany(
            "INSERT INTO requests SELECT started, max(started, ?), key, model, endpoint, engine, request_id, "
            "stream, ?, 0, 0, 0, 1, 0, NULL FROM opened WHERE worker = ?",
            [(now, LOST, *one) for one in gone],
        )
        lost = connection.total_changes - before
        connection.executemany("DELETE FROM opened WHERE worker = ?", gone)
        connection.executemany("DELETE FROM workers WHERE worker = ?", gone)
    return lost


def forget_before(connection: sqlite3.Connection, ended: int, at_once: int) -> bool:
    """Delete up to `at_once` of the oldest rows that ended before a time; whether more are left.

    The sums by day stay for good.
    """
    # Rows are appended as requests end, so that the oldest come first.
    with transaction(connection):
        found = connection.execute(
            "SELECT max(rowid), count(*) FROM (SELECT rowid, ended FROM requests ORDER BY rowid LIMIT ?) "
            "WHERE ended < ?",
            (at_once, ended),
        ).fetchone()
        if found[1]:
            connection.execute("DELETE FROM requests WHERE rowid <= ? AND ended < ?", (found[0], ended))
    # Gives the space back to the file system, a little at a time. A script runs to its end, where `execute`
    # would stop after one page.
    connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
    free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return bool(found[1] == at_once or free)


def usage(
    path: Path, *, by: Sequence[str], since: str = "", until: str = "9999", key: str | None = None,
    model: str | None = None,
) -> list[UsageRow]:  # fmt: skip
    """Sums told apart `by` some of ``day``, ``key`` and ``model``, over days from `since` to `until`.

    Raises:
        sqlite3.Error: the ledger cannot be read.
    """
    columns = ", ".join(name if name in by else f"NULL AS {name}" for name in ("day", "key", "model"))
    group = f"GROUP BY {', '.join(by)} ORDER BY {', '.join(by)}" if by else ""
    query = (
        f"SELECT {columns}, sum(requests), sum(failed), sum(prompt), sum(cached), sum(completion) FROM days "  # noqa: S608 - column names from the list above
        f"WHERE day >= ? AND day <= ? AND (? IS NULL OR key = ?) AND (? IS NULL OR model = ?) {group}"
    )
    with closing(connect(path, readonly=True)) as connection:
        rows = connection.execute(query, (since, until, key, key, model, model)).fetchall()
    return [UsageRow(*row) for row in rows if row[3]]


def lost(path: Path, since: int) -> tuple[int, int]:
    """Requests that ended with a killed gateway since a time, and requests on their way.

    Raises:
        sqlite3.Error: the ledger cannot be read.
    """
    with closing(connect(path, readonly=True)) as connection:
        ended = connection.execute(
            "SELECT count(*) FROM requests WHERE outcome = ? AND ended >= ?", (LOST, since)
        ).fetchone()[0]
        return ended, connection.execute("SELECT count(*) FROM opened").fetchone()[0]


def latest_point(connection: sqlite3.Connection, engine: str) -> Point | None:
    """The latest reconciliation of `engine`."""
    row = connection.execute("SELECT * FROM points WHERE engine = ?", (engine,)).fetchone()
    return Point(*row) if row else None


def tokens_since(connection: sqlite3.Connection, engine: str, row: int) -> tuple[int, int, int]:
    """Prompt and completion tokens that `engine` counted, in rows after `row`, and the latest row.

    Estimated ones are not the engine's.
    """
    last = connection.execute("SELECT coalesce(max(rowid), 0) FROM requests").fetchone()[0]
    prompt, completion = connection.execute(
        "SELECT coalesce(sum(prompt), 0), coalesce(sum(completion), 0) FROM requests "
        "WHERE rowid > ? AND rowid <= ? AND engine = ? AND NOT estimated",
        (row, last, engine),
    ).fetchone()
    return prompt, completion, last


def set_point(connection: sqlite3.Connection, point: Point) -> None:
    """Keep `point` as the latest of its engine."""
    connection.execute("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?, ?, ?)", point)
