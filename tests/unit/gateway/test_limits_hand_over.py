"""Limits from one worker to the next, over a real socket, and over a file."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic, time

import pytest

from daemons.gateway.metrics import Counter
from daemons.gateway.tenants import hand_over
from daemons.gateway.tenants.accounts import Refused
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.hand_over import HandOver
from daemons.gateway.tenants.limiter import Limiter, Reservation
from daemons.gateway.tenants.reserve import Limits
from daemons.gateway.tenants.state_file import StateFile
from tests.support.limits import reserve

TEN = Bounds(requests_per_minute=10, concurrency=5)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine answers later than a worker would wait; that the other one is gone is told at once."""
    monkeypatch.setattr(hand_over, "_ANSWER_SECONDS", 60.0)
    monkeypatch.setattr(hand_over, "_TAKE_OVER_SECONDS", 60.0)


class Worker:
    """The limits of a worker."""

    def __init__(self, path: Path) -> None:
        self.limiter = Limiter(Bounds(), monotonic, time)
        self.limits = Limits(self.limiter, Counter())
        self.hand_over = HandOver(self.limits, path)

    @property
    def in_flight(self) -> int:
        return self.limiter.keys["a"].in_flight

    async def ask(self, bounds: Bounds = TEN) -> Reservation | None:
        """What a request does."""
        return await reserve(self.limits, bounds)


@contextlib.asynccontextmanager
async def two_workers(tmp_path: Path) -> AsyncIterator[tuple[Worker, Worker, list[Reservation]]]:
    """An old worker with three requests on their way, and the new one that has taken over."""
    old, new = Worker(tmp_path / "limits"), Worker(tmp_path / "limits")
    await old.hand_over.offer()
    held = [made for _ in range(3) if (made := await old.ask()) is not None]
    assert len(held) == 3
    assert await new.hand_over.take_over()
    await new.hand_over.offer()
    try:
        yield old, new, held
    finally:
        await old.hand_over.close()
        await new.hand_over.close()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110 - the other side of a socket
            await asyncio.sleep(0.005)


async def test_both_together_let_no_more_pass_than_one(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as (old, new, held):
        assert new.in_flight == 3
        asked = await asyncio.gather(*(worker.ask() for worker in (old, new) * 6))
        assert sum(made is not None for made in asked) == 2
        for made in (*held, *asked):
            if made is not None:
                made.settle(10, 0)
        await until(lambda: new.in_flight == 0)
        asked = await asyncio.gather(*(worker.ask() for worker in (old, new) * 6))
        assert sum(made is not None for made in asked) == 5
        assert new.limiter.keys["a"].requests.total == 10
        assert new.limiter.keys["a"].months.used == {new.limiter.periods().month: 5 * 10 + 5 * 20}


async def test_a_request_given_up_costs_nothing_in_either(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as (old, new, held):
        for made in held:
            made.cancel()
        asked = await old.ask()
        assert asked is not None
        asked.cancel()
        await until(lambda: new.in_flight == 0 and not new.limiter.keys["a"].requests.total)
        assert old.limiter.keys["a"].requests.total == 0


async def test_an_old_worker_that_dies_leaves_no_request_behind(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as (old, new, _):
        assert old.hand_over.successor is not None
        old.hand_over.successor._writer.transport.abort()
        await until(lambda: new.in_flight == 0)
        # Nobody says what they used: the estimate stands.
        assert new.limiter.keys["a"].tokens.total == 60


async def test_without_its_successor_the_old_worker_goes_on_alone(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as (old, new, held):
        await new.hand_over.close()
        await until(lambda: old.hand_over.successor is None)
        assert old.limits.store is None
        asked = [await old.ask() for _ in range(4)]
        assert sum(made is not None for made in asked) == 2
        for made in held:
            assert made.settle(1, 1)


async def test_a_third_worker_takes_over_from_the_second_while_the_first_drains(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as (old, new, held):
        third = Worker(tmp_path / "limits")
        assert await third.hand_over.take_over()
        assert third.in_flight == 3
        asked = [await worker.ask() for worker in (old, new, third, old, new, third)]
        assert sum(made is not None for made in asked) == 2
        for made in held:
            made.settle(1, 0)
        await until(lambda: third.in_flight == 2)
        await third.hand_over.close()


async def test_nobody_there_is_no_obstacle(tmp_path: Path) -> None:
    assert not await Worker(tmp_path / "nowhere").hand_over.take_over()


@pytest.mark.parametrize("words", [b"", b"\x00\x00\x00\x05hello", b"\xff\xff\xff\xff"])
async def test_nonsense_is_not_taken_over(tmp_path: Path, words: bytes) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        writer.close()

    server = await asyncio.start_unix_server(speak, tmp_path / "limits")
    assert not await Worker(tmp_path / "limits").hand_over.take_over()
    server.close()


async def test_keeping_the_state_of_many_addresses_lets_requests_through(tmp_path: Path) -> None:
    limiter = Limiter(Bounds(requests_per_minute=9), monotonic, time)
    for i in range(2000):
        limiter.reserve("a", Bounds(), f"192.0.{i >> 8}.{i & 255}", 10).settle(4, 4)
    keeping = asyncio.create_task(StateFile(tmp_path / "limits.json", limiter).keep())
    turns = 0
    while not keeping.done():
        limiter.reserve("a", Bounds(), f"198.51.{turns >> 8}.{turns & 255}", 10).settle(4, 4)
        turns += 1
        await asyncio.sleep(0)
    # One turn of the loop for each hundred of them.
    assert turns >= 20
    after = Limiter(Bounds(), monotonic, time)
    await asyncio.to_thread(StateFile(tmp_path / "limits.json", after).load)
    assert len(after.addresses) >= 2000


def test_a_state_file_carries_what_was_used_over_a_kill(tmp_path: Path) -> None:
    bounds = Bounds(requests_per_minute=2, tokens_per_day=100)
    before = Limiter(Bounds(), monotonic, time)
    file = StateFile(tmp_path / "limits.json", before)
    file.load()
    before.reserve("a", bounds, "", 10).settle(40, 40)
    before.reserve("a", bounds, "", 10)
    asyncio.run(file.keep())
    assert (tmp_path / "limits.json").stat().st_mode & 0o777 == 0o600
    after = Limiter(Bounds(), monotonic, time)
    StateFile(tmp_path / "limits.json", after).load()
    assert after.keys["a"].in_flight == 0
    with pytest.raises(Refused) as refused:
        after.reserve("a", bounds, "", 1)
    assert refused.value.dimension == "requests"
    with pytest.raises(Refused) as refused:
        after.reserve("a", Bounds(tokens_per_day=100), "", 11)
    assert refused.value.dimension == "day"


@pytest.mark.parametrize("content", ["", "{}", "[1]", json.dumps({"monotonic": "x"})])
def test_a_broken_state_file_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / "limits.json").write_text(content)
    limiter = Limiter(Bounds(), monotonic, time)
    StateFile(tmp_path / "limits.json", limiter).load()
    assert limiter.keys == {}
    asyncio.run(StateFile(tmp_path / "nowhere" / "limits.json", limiter).keep())
