"""The ledger's thread and file: nothing is lost, nothing is counted twice, nothing waits for it."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemons.gateway.exchange import Exchange
from daemons.gateway.relay.usage import TokenCounts
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.ledger import book
from daemons.gateway.tenants.ledger.book import Batch, Closed
from daemons.gateway.tenants.ledger.ledger import Ledger
from daemons.gateway.tenants.ring import Tenant

DAY = 86_400_000_000
NOON = 1_800_014_400_000_000


def until(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def exchange(alias: str = "team", arrived: float | None = None) -> Exchange:
    tenant = Tenant(alias, limits=Bounds(), cache_group=alias)
    return Exchange("r1", tenant, "chat", time.monotonic() if arrived is None else arrived, model="m")


def end(ledger: Ledger, one: Exchange, prompt: int = 7, completion: int = 2, outcome: str = "ok") -> None:
    counts = TokenCounts(prompt, 1, completion)
    ledger.ended(one, counts, outcome, time.monotonic(), estimated=False)


def rows(path: Path, table: str = "requests") -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        try:
            return connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608
        except sqlite3.OperationalError:
            # It is being made at this moment.
            return []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    made = Ledger(path, 90)
    made.start()
    yield made
    made.close()


def closed(ended: int = NOON, **more: Any) -> Closed:
    row = Closed(
        ended - 1, ended, "team", "m", "chat", "e", "r", True, "ok", 7, 1, 2, False, 0, None
    )  # fmt: skip
    return row._replace(**more)


def test_what_has_ended_is_written_soon_and_once(ledger: Ledger, path: Path) -> None:
    one = exchange()
    ledger.began(one)
    end(ledger, one)
    until(lambda: ledger.written == 1)
    (row,) = map(Closed._make, rows(path))
    assert (row.key, row.model, row.prompt, row.cached, row.completion) == ("team", "m", 7, 1, 2)
    assert row.started <= row.ended <= time.time() * 1e6
    assert rows(path, "opened") == []
    # It is counted as written a moment before it waits no more.
    until(lambda: ledger.pending == 0)
    assert ledger.delay == 0


def test_a_request_that_was_not_let_in_has_no_row(ledger: Ledger, path: Path) -> None:
    end(ledger, exchange(), outcome="rate_limit_exceeded")
    ledger.ask(lambda _: None).result(20)
    assert rows(path) == []


def test_a_long_request_has_a_row_while_it_is_open(ledger: Ledger, path: Path) -> None:
    one = exchange()
    ledger.began(one)
    until(lambda: path.exists() and rows(path, "opened"))
    end(ledger, one)
    until(lambda: ledger.written == 1)
    assert rows(path, "opened") == []


def test_the_end_writes_everything(path: Path) -> None:
    ledger = Ledger(path, 90)
    ledger.start()
    for i in range(5000):
        one = exchange(f"k{i % 3}")
        ledger.began(one)
        end(ledger, one)
    ledger.close()
    assert len(rows(path)) == 5000
    assert sum(row.requests for row in book.usage(path, by=("key",))) == 5000


def test_a_question_given_up_while_it_is_answered_does_not_end_the_ledger(ledger: Ledger, path: Path) -> None:
    asked, given_up = threading.Event(), threading.Event()

    def question(_: sqlite3.Connection) -> None:
        asked.set()
        assert given_up.wait(20)

    future = ledger.ask(question)
    assert asked.wait(20)
    future.cancel()
    given_up.set()
    one = exchange()
    ledger.began(one)
    end(ledger, one)
    ledger.close()
    assert len(rows(path)) == 1


def test_a_locked_file_delays_and_loses_nothing(ledger: Ledger, path: Path) -> None:
    ledger.ask(lambda _: None).result(20)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(10):
            one = exchange()
            ledger.began(one)
            end(ledger, one)
        until(lambda: ledger.failing)
        assert ledger.pending == 10
        assert ledger.delay > 0
        with pytest.raises(sqlite3.Error):
            ledger.ask(lambda _: None).result(20)
        other.execute("ROLLBACK")
    until(lambda: ledger.written == 10)
    until(lambda: not ledger.failing)
    assert len(rows(path)) == 10


def test_a_folder_that_comes_later_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "later" / "ledger.db"
    ledger = Ledger(path, 90)
    ledger.start()
    one = exchange()
    ledger.began(one)
    end(ledger, one)
    until(lambda: ledger.failing)
    path.parent.mkdir()
    until(lambda: ledger.written == 1)
    ledger.close()


def test_memory_is_bounded_and_the_loss_is_counted(path: Path) -> None:
    ledger = Ledger(path, 90, capacity=5)
    for _ in range(8):
        one = exchange()
        ledger.began(one)
        end(ledger, one)
    assert (ledger.pending, ledger.dropped) == (5, 3)
    ledger.start()
    ledger.close()
    assert len(rows(path)) == 5


def test_a_row_that_no_file_takes_does_not_stop_the_others(ledger: Ledger, path: Path) -> None:
    one = exchange()
    ledger.began(one)
    end(ledger, one, prompt=1 << 80)
    until(lambda: ledger.dropped == 1)
    one = exchange()
    ledger.began(one)
    end(ledger, one)
    until(lambda: ledger.written == 1)


def test_a_batch_of_doubtful_fate_is_written_once(path: Path) -> None:
    with closing(book.connect(path)) as connection:
        book.register(connection, 1, "x")
        batch = Batch(1, [], [closed()], [])
        book.write(connection, 1, batch)
        book.write(connection, 1, batch)
        book.write(connection, 1, Batch(2, [], [closed()], []))
    assert len(rows(path)) == 2
    assert book.usage(path, by=())[0].requests == 2


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1234])
def test_a_batch_of_any_size_is_written_whole(path: Path, count: int) -> None:
    opened = [book.Opened(n, NOON, "team", "m", "chat", None, f"o{n}", True) for n in range(count)]
    with closing(book.connect(path)) as connection:
        book.register(connection, 1, "x")
        book.register(connection, 2, "x")
        book.write(connection, 2, Batch(1, opened, [], []))
        book.write(connection, 1, Batch(1, opened, [closed(request_id=f"r{n}") for n in range(count)], []))
        book.write(connection, 1, Batch(2, [], [], range(1, count)))
    assert [row.request_id for row in map(Closed._make, rows(path))] == [f"r{n}" for n in range(count)]
    left = {(row[0], row[1]) for row in rows(path, "opened")}
    assert left == {(2, number) for number in range(count)} | {(1, 0)}


def test_batches_of_all_sizes_need_few_statements(path: Path) -> None:
    """A connection keeps its statements ready, and those of many rows are large."""
    statements = set()

    class Noting(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            statements.add(sql)
            return super().execute(sql, *parameters)

    book.connect(path).close()
    with closing(sqlite3.connect(path, isolation_level=None, factory=Noting)) as connection:
        book.register(connection, 1, "x")
        for size in range(1, 200):
            opened = [book.Opened(n, NOON, "team", "m", "chat", None, "o", True) for n in range(size)]
            book.write(connection, 1, Batch(2 * size, opened, [closed()] * size, []))
            book.write(connection, 1, Batch(2 * size + 1, [], [], range(size)))
    assert len(statements) < 30


def test_open_rows_of_a_dead_worker_are_closed_as_lost(path: Path) -> None:
    with closing(book.connect(path)) as connection:
        for worker, mark in ((1, "dead"), (2, "alive")):
            book.register(connection, worker, mark)
            opened = book.Opened(1, NOON, "team", "m", "chat", "e", "r", True)
            book.write(connection, worker, Batch(1, [opened], [], []))
        assert book.close_lost(connection, 3, NOON + 5, lambda _, mark: mark == "alive") == 1
    (row,) = map(Closed._make, rows(path))
    assert (row.outcome, row.prompt, row.started, row.ended) == (book.LOST, 0, NOON, NOON + 5)
    assert len(rows(path, "opened")) == 1
    assert book.lost(path, NOON) == (1, 1)


def test_old_rows_go_their_sums_stay_and_the_file_shrinks(path: Path) -> None:
    with closing(book.connect(path)) as connection:
        book.register(connection, 1, "x")
        old = [closed(NOON - DAY, request_id="r" * 100) for _ in range(3000)]
        book.write(connection, 1, Batch(1, [], old, []))
        book.write(connection, 1, Batch(2, [], [closed()], []))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = path.stat().st_size
        rounds = 0
        while book.forget_before(connection, NOON, 1000):
            rounds += 1
        assert 3 <= rounds < 100
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert len(rows(path)) == 1
    assert path.stat().st_size < size / 5
    assert [row.requests for row in book.usage(path, by=("day",))] == [3000, 1]


def test_usage_is_told_apart_by_what_is_asked_for(path: Path) -> None:
    with closing(book.connect(path)) as connection:
        book.register(connection, 1, "x")
        batch = [
            closed(),
            closed(outcome="client_gone", completion=1),
            closed(key="other"),
            closed(NOON + DAY, model="n"),
        ]
        book.write(connection, 1, Batch(1, [], batch, []))
    assert [(r.key, r.requests, r.failed) for r in book.usage(path, by=("key",))] == [
        ("other", 1, 0),
        ("team", 3, 1),
    ]
    assert [(r.day, r.model) for r in book.usage(path, by=("day", "model"), key="team")] == [
        ("2027-01-15", "m"),
        ("2027-01-16", "n"),
    ]
    (total,) = book.usage(path, by=(), since="2027-01-16", until="2027-01-16")
    assert (total.prompt_tokens, total.cached_tokens, total.completion_tokens) == (7, 1, 2)
    assert book.usage(path, by=(), since="2028-01-01") == []


def test_a_ledger_of_a_later_release_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(sqlite3.Error, match="version 99"):
        book.connect(path)
