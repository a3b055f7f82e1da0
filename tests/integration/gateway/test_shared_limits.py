"""Limits of several gateways, in a real server from the distribution's packages."""

# ruff: noqa: ASYNC110 - another process is watched, which sets no event

import asyncio
import contextlib
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest
from pydantic import SecretStr

from daemons.gateway.metrics import Counter
from daemons.gateway.tenants import shared
from daemons.gateway.tenants.accounts import Refused
from daemons.gateway.tenants.bounds import Bounds, SharedLimitsSettings
from daemons.gateway.tenants.limiter import Limiter, Reservation
from daemons.gateway.tenants.reserve import Limits
from daemons.gateway.tenants.shared import RedisServer, SharedLimits
from tests.support.fake_engine import FakeEngine, answer_chat
from tests.support.gateway import gateway, until, write_key
from tests.support.limits import reserve

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")

pytestmark = pytest.mark.skipif(SERVER is None, reason="needs redis-server (apt-get install redis-server)")


class Redis:
    """A server on a unix socket, that can be stopped, frozen and started again with nothing in it."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert SERVER is not None
        command = [
            SERVER,
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self.process = subprocess.Popen([*command, "--requirepass", "secret"], stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.socket.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine answers later than a gateway would wait; that a server is gone is told at once."""
    monkeypatch.setattr(shared, "_ANSWER_SECONDS", 60.0)


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    made = Redis(tmp_path_factory.mktemp("redis"))
    made.start()
    try:
        yield made
    finally:
        made.stop()


class Peer:
    """The limits of one gateway among several."""

    def __init__(self, redis: Redis, addresses: Bounds | None = None) -> None:
        bounds = addresses or Bounds()
        self.limiter = Limiter(bounds, monotonic, time)
        self.limits = Limits(self.limiter, Counter())
        server = RedisServer(SharedLimitsSettings(url=redis.url), SecretStr("secret"))
        self.shared = self.limits.store = SharedLimits(self.limiter, bounds, server, "llm")

    async def ask(self, bounds: Bounds, tokens: int = 10, address: str = "") -> Reservation | None:
        return await reserve(self.limits, bounds, tokens, address)


@contextlib.asynccontextmanager
async def peers(redis: Redis, count: int = 2, addresses: Bounds | None = None) -> AsyncIterator[list[Peer]]:
    made = [await asyncio.to_thread(Peer, redis, addresses) for _ in range(count)]
    tasks = [asyncio.create_task(peer.shared.run()) for peer in made]
    try:
        await until(lambda: all(peer.shared.up for peer in made) or any(task.done() for task in tasks))
        for task in tasks:
            if task.done():
                task.result()
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for peer in made:
            await peer.shared.close()


async def let_in(made: list[Peer], bounds: Bounds, tries: int, tokens: int = 10) -> list[Reservation]:
    asked = await asyncio.gather(*(made[i % len(made)].ask(bounds, tokens) for i in range(tries)))
    return [one for one in asked if one is not None]


@pytest.mark.parametrize("repetition", range(3))
async def test_a_burst_over_three_gateways_lets_exactly_ten_pass(redis: Redis, repetition: int) -> None:
    async with peers(redis, 3) as made:
        assert len(await let_in(made, Bounds(requests_per_minute=10), 200)) == 10


async def test_concurrency_is_one_over_all_and_comes_back(redis: Redis) -> None:
    bounds = Bounds(concurrency=4)
    async with peers(redis) as made:
        held = await let_in(made, bounds, 20)
        assert len(held) == 4
        assert await let_in(made, bounds, 4) == []
        for one in held[:2]:
            one.settle(5, 5)
        held[2].cancel()
        await until(lambda: not any(peer.shared._tasks for peer in made))
        assert len(await let_in(made, bounds, 20)) == 3


async def test_tokens_are_settled_with_what_was_used(redis: Redis) -> None:
    bounds = Bounds(tokens_per_minute=1000)
    async with peers(redis) as made:
        for one in await let_in(made, bounds, 10, 100):
            one.settle(10, 10)
        await until(lambda: not any(peer.shared._tasks for peer in made))
        # 200 are used, so that 8 of 100 fit.
        held = await let_in(made, bounds, 20, 100)
        assert len(held) == 8
        for one in held:
            one.cancel()
        await until(lambda: not any(peer.shared._tasks for peer in made))
        assert len(await let_in(made, bounds, 20, 100)) == 8


async def test_budgets_and_addresses_are_shared(redis: Redis) -> None:
    async with peers(redis, 2, Bounds(requests_per_minute=3)) as made:
        asked = [await made[i % 2].ask(Bounds(), 10, "192.0.2.1") for i in range(6)]
        assert sum(one is not None for one in asked) == 3
        budget = Bounds(tokens_per_day=100)
        asked = [await made[i % 2].ask(budget, 40) for i in range(4)]
        # Thirty are used from that address by the same key.
        assert sum(one is not None for one in asked) == 1


async def test_a_true_wait_is_told(redis: Redis) -> None:
    async with peers(redis) as made:
        began = monotonic()
        await let_in(made, Bounds(requests_per_minute=4), 4)
        one = made[0].limiter.reserve("a", Bounds(), "", 1)
        with pytest.raises(Refused) as refused:
            await made[0].limits.share(one, Bounds(requests_per_minute=4))
        assert refused.value.dimension == "requests"
        assert 59 - (monotonic() - began) <= refused.value.wait <= 61
        with pytest.raises(Refused) as refused:
            await made[0].limits.share(one, Bounds(tokens_per_day=1))
        left = made[0].limiter.periods().day_ends - time()
        assert left <= refused.value.wait <= left + monotonic() - began + 1


async def test_without_the_server_the_limits_of_each_hold_and_it_is_told(redis: Redis) -> None:
    bounds = Bounds(requests_per_minute=6, concurrency=100)
    async with peers(redis) as made:
        held = await let_in(made, bounds, 4)
        redis.stop()
        first = await made[0].ask(bounds)
        assert first is not None
        await until(lambda: not made[0].shared.up)
        passed = [await made[0].ask(bounds) for _ in range(10)]
        # Six a minute here alone: two came before, and one in the moment of the loss.
        assert sum(one is not None for one in passed) == 3
        assert made[0].limits.alone >= 4
        for one in (*held, first, *passed):
            if one is not None:
                one.settle(1, 1)
        redis.start()
        await until(lambda: all(peer.shared.up for peer in made))
        assert made[0].limiter.keys["a"].in_flight == 0


async def test_what_is_on_its_way_while_the_server_is_lost_is_counted_afterwards(redis: Redis) -> None:
    bounds = Bounds(concurrency=3)
    async with peers(redis) as made:
        held = await let_in([made[0]], bounds, 2)
        redis.stop()
        lonely = await made[0].ask(bounds)
        assert lonely is not None
        await until(lambda: not made[0].shared.up)
        redis.start()
        await until(lambda: all(peer.shared.up for peer in made))
        assert await made[1].ask(bounds) is None
        lonely.settle(1, 1)
        await until(lambda: not made[0].shared._tasks)
        assert await made[1].ask(bounds) is not None
        for one in held:
            one.settle(1, 1)
        await until(lambda: not made[0].shared._tasks)
        assert len(await let_in([made[1]], bounds, 5)) == 2


async def test_requests_given_up_at_any_moment_leave_nothing_behind(redis: Redis) -> None:
    bounds = Bounds(concurrency=8, requests_per_minute=100_000, tokens_per_minute=10_000_000)
    dice = random.Random(3)  # noqa: S311 - which request is given up when
    async with peers(redis) as made:

        async def one(peer: Peer) -> None:
            task = asyncio.create_task(peer.ask(bounds))
            if dice.random() < 0.3:
                await asyncio.sleep(dice.random() / 500)
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                reservation = await task
                if reservation is not None:
                    await asyncio.sleep(dice.random() / 200)
                    (reservation.settle(3, 3) if dice.random() < 0.7 else reservation.cancel())

        for _ in range(40):
            await asyncio.gather(*(one(made[i % 2]) for i in range(20)))
            # What a request does on its way out, wherever it was given up.
            for peer in made:
                for left in list(peer.limiter.open.values()):
                    left.cancel()
        await until(lambda: not any(peer.shared._tasks or peer.shared._asked for peer in made))
        assert len(await let_in(made, bounds, 40)) == 8


async def test_what_a_predecessor_has_on_its_way_is_not_counted_for_ever(redis: Redis) -> None:
    bounds = Bounds(concurrency=3)
    async with peers(redis) as (old, new):
        held = await let_in([old], bounds, 2)
        taken_over = new.limiter.restore(old.limiter.export(), same_boot=True)
        redis.stop()
        await until(lambda: not (old.shared.up or new.shared.up))
        redis.start()
        await until(lambda: old.shared.up and new.shared.up)
        for one in (*held, *taken_over.values()):
            one.settle(1, 1)
        await until(lambda: not old.shared._tasks)
        assert len(await let_in([new], bounds, 5)) == 3


async def test_a_request_over_midnight_is_settled_in_the_day_of_its_beginning(redis: Redis) -> None:
    bounds = Bounds(tokens_per_day=100)
    async with peers(redis) as made:
        over_midnight = await made[0].ask(bounds, 60)
        assert over_midnight is not None
        for peer in made:
            peer.limiter.wall = lambda: time() + 86400
        over_midnight.settle(5, 5)
        await until(lambda: not made[0].shared._tasks)
        assert await made[1].ask(bounds, 60) is not None
        assert await made[0].ask(bounds, 60) is None


async def test_the_clock_of_one_gateway_takes_nothing_off_the_budget(redis: Redis) -> None:
    bounds = Bounds(tokens_per_day=100, tokens_per_month=100)
    async with peers(redis) as made:
        assert await made[0].ask(bounds, 60) is not None
        made[1].limiter.wall = lambda: time() + 200 * 86400
        assert await made[1].ask(bounds, 10) is not None
        made[1].limiter.wall = time
        assert await made[1].ask(bounds, 60) is None


async def test_what_is_given_up_at_the_very_end_is_still_given_back(redis: Redis) -> None:
    bounds = Bounds(requests_per_minute=1)
    async with peers(redis) as (one, other):
        asking = asyncio.create_task(one.ask(bounds))
        while not one.shared._asked:
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        for left in list(one.limiter.open.values()):
            left.cancel()
        await one.shared.close()
        assert not one.shared._counted
        assert await other.ask(bounds) is not None


async def test_two_gateways_share_the_limits_of_a_key(tmp_path: Path, redis: Redis) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        write_key(folder / "keys.d", "team", limits={"requests_per_minute": 10})
    more: dict[str, Any] = {"shared_limits": {"url": redis.url}, "redis_password": "secret"}
    async with (
        FakeEngine(answer_chat) as engine,
        gateway(folders[0], engine.url, **more) as first,
        gateway(folders[1], engine.url, **more) as second,
    ):
        for running in (first, second):
            await until(lambda running=running: bool(running.gateway.tenancy.shared.up))  # type: ignore[misc]
        answers = await asyncio.gather(*((first, second)[i % 2].chat() for i in range(60)))
        statuses = [answer.status for answer in answers]
        assert (statuses.count(200), statuses.count(429)) == (10, 50)
        assert (await first.metrics())["llm_gateway_shared_limits_up"] == 1
        redis.stop()
        assert (await first.chat()).status in {200, 429}
        await until(lambda: not first.gateway.tenancy.shared.up)  # type: ignore[union-attr]
        assert (await first.metrics())["llm_gateway_shared_limits_up"] == 0


def test_a_password_in_the_settings_is_refused() -> None:
    with pytest.raises(ValueError, match="credential redis-password"):
        SharedLimitsSettings(url="redis://:secret@host:6379/0")
    with pytest.raises(ValueError, match="credential redis-password"):
        SharedLimitsSettings(url="unix:///run/redis.sock?password=secret")
    with pytest.raises(ValueError, match="expected redis://"):
        SharedLimitsSettings(url="http://host")
