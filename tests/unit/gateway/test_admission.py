"""The queue: whatever comes, leaves or is cancelled, no place is lost or given twice; retries are few."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.gateway.admission.queue import Admission, FirstComeByClass
from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.pool.engine import Engine
from daemons.gateway.pool.pick import Asked, LeastInFlight
from daemons.gateway.pool.pool import Pool
from daemons.gateway.relay.attempts import RetryBudget
from daemons.gateway.settings import PRIORITIES, Deadlines, EngineSettings, Priority, QueueSettings
from daemons.runtime.control import EngineReport, EngineState

ASKED = Asked(model="m", tenant="team", cache_group="team", body=b"{}", prompt_tokens=1)
READY = EngineReport(state=EngineState.READY)


class House:
    """Two engines with two places each, and those who are served by them."""

    def __init__(self, depth: int = 6, deadline: float = 60.0) -> None:
        made = [EngineSettings(name=n, url="http://127.0.0.1:9", models=["m"], max_in_flight=2) for n in "ab"]
        self.engines = [Engine(each, 1.0) for each in made]
        for engine in self.engines:
            engine.report = READY
        deadlines = Deadlines(interactive=deadline, default=deadline, batch=deadline)
        self.admission = Admission(
            Pool(self.engines, LeastInFlight()),
            QueueSettings(depth=depth, deadlines=deadlines),
            FirstComeByClass,
        )
        self.depth = depth
        self.served: list[Engine] = []
        self.order: list[tuple[Priority, int]] = []
        self.waiting: list[asyncio.Task[None]] = []
        self.refused: list[ApiError] = []
        self._count = 0

    async def come(self, priority: Priority) -> None:
        """A request comes and is served, waits, or is refused."""
        self._count += 1
        number = self._count
        loop = asyncio.get_running_loop()
        engine = self.admission.enter_at_once(ASKED, loop.time())
        if engine is not None:
            self.served.append(engine)
            return

        async def wait() -> None:
            try:
                self.served.append(await self.admission.enter(ASKED, priority))
                self.order.append((priority, number))
            except ApiError as error:
                self.refused.append(error)

        self.waiting.append(asyncio.create_task(wait()))
        await asyncio.sleep(0)

    async def leave(self) -> None:
        """One that is served ends."""
        if self.served:
            self.admission.leave(self.served.pop(0), asyncio.get_running_loop().time())
        await asyncio.sleep(0)

    async def cancel(self) -> None:
        """One that waits, or was let in this very moment, goes away."""
        if self.waiting:
            self.waiting.pop(len(self.waiting) // 2).cancel()
        await asyncio.sleep(0)

    async def let_in_and_cancel(self) -> None:
        """A place comes free for one whose client leaves before it has heard of that."""
        if self.served and self.waiting:
            self.admission.leave(self.served.pop(0), asyncio.get_running_loop().time())
            for task in self.waiting:
                task.cancel()
            self.waiting.clear()
        await asyncio.sleep(0)

    async def die(self) -> None:
        """Both engines are gone, and come back."""
        for engine in self.engines:
            engine.report = EngineReport(state=EngineState.SICK)
        self.admission.pump("m", 0)
        await asyncio.sleep(0)
        for engine in self.engines:
            engine.report = READY

    def check(self) -> None:
        """What must always be so."""
        queued = sum(self.admission.waiting("m").values())
        assert queued <= self.depth
        assert sum(engine.in_flight for engine in self.engines) == len(self.served)
        assert all(0 <= engine.in_flight <= 2 for engine in self.engines)
        # Nobody waits while there is a place.
        assert not queued or len(self.served) == 4


STEPS: dict[str, Callable[[House], Awaitable[None]]] = {
    **{priority: lambda house, p=priority: house.come(p) for priority in PRIORITIES},  # type: ignore[misc]
    "leave": House.leave,
    "cancel": House.cancel,
    "let in and cancel": House.let_in_and_cancel,
    "die": House.die,
}


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=60))
def test_no_place_is_lost_or_given_twice(steps: list[str]) -> None:
    async def run() -> None:
        house = House()
        for step in steps:
            await STEPS[step](house)
            await asyncio.sleep(0)
            house.check()
        while house.served:
            await house.leave()
            await asyncio.sleep(0)
        assert sum(house.admission.waiting("m").values()) == 0
        assert all(engine.in_flight == 0 for engine in house.engines)
        await asyncio.gather(*house.waiting, return_exceptions=True)
        for error in house.refused:
            assert error.code in {ErrorCode.QUEUE_FULL, ErrorCode.NO_ENGINE}
            assert int(error.headers["Retry-After"]) >= 1

    asyncio.run(run())


async def test_the_most_urgent_class_goes_first_and_within_it_who_came_first() -> None:
    house = House()
    for _ in range(4):
        await house.come("batch")
    for priority in ("batch", "default", "interactive", "default", "interactive"):
        await house.come(priority)
    for _ in range(5):
        await house.leave()
    assert house.order == [
        ("interactive", 7),
        ("interactive", 9),
        ("default", 6),
        ("default", 8),
        ("batch", 5),
    ]
    while house.served:
        await house.leave()


async def test_who_waits_too_long_is_told_and_leaves_no_trace() -> None:
    house = House(deadline=0.05)
    for _ in range(5):
        await house.come("default")
    await asyncio.gather(*house.waiting)
    assert [error.code for error in house.refused] == [ErrorCode.QUEUE_TIMEOUT]
    house.check()


async def test_whoever_waits_when_the_server_goes_down_is_told() -> None:
    house = House()
    for priority in ("default", "default", "default", "default", "batch", "default"):
        await house.come(priority)
    gone = house.waiting[0]
    gone.cancel()
    house.admission.close()
    await asyncio.gather(*house.waiting, return_exceptions=True)
    await house.come("default")
    await house.leave()
    await house.come("default")
    await asyncio.gather(*house.waiting, return_exceptions=True)
    assert gone.cancelled()
    assert [error.code for error in house.refused] == [ErrorCode.SHUTTING_DOWN] * 3
    assert all(error.headers["Retry-After"] for error in house.refused)
    assert sum(house.admission.waiting("m").values()) == 0
    house.check()


@pytest.mark.parametrize("seconds", [0.004, 2.0, 12.0, 80.0])
@pytest.mark.parametrize("together", [True, False])
async def test_retry_after_follows_from_how_long_places_are_held(seconds: float, together: bool) -> None:
    """However they come free: one after the other, or all in one moment."""
    house = House(depth=6)
    for _ in range(10):
        await house.come("default")
    for _ in range(40):
        for _ in range(4 if together else 1):
            house.served[0].held(seconds)
            await house.leave()
        while len(house.served) < 4 or sum(house.admission.waiting("m").values()) < 6:
            await house.come("default")
    with pytest.raises(ApiError) as full:
        await house.admission.enter(ASKED, "default")
    assert full.value.code is ErrorCode.QUEUE_FULL
    assert int(full.value.headers["Retry-After"]) == max(1, round(seconds * 6 / 4))
    for task in house.waiting:
        task.cancel()
    await asyncio.gather(*house.waiting, return_exceptions=True)


async def test_retry_after_is_a_guess_until_a_request_has_ended() -> None:
    house = House(depth=20)
    for _ in range(25):
        await house.come("default")
    assert [error.headers for error in house.refused] == [{"Retry-After": "50"}]
    for task in house.waiting:
        task.cancel()
    await asyncio.gather(*house.waiting, return_exceptions=True)


async def test_a_full_queue_makes_room_for_a_more_urgent_class() -> None:
    house = House(depth=3)
    first: list[Priority] = ["default", "default", "default", "default", "batch", "batch", "default"]
    then: list[Priority] = ["batch", "default", "interactive", "interactive", "default", "interactive"]
    for priority in (*first, *then):
        await house.come(priority)
        house.check()
    assert house.admission.waiting("m") == {"interactive": 3, "default": 0, "batch": 0}
    await house.come("interactive")
    assert [error.code for error in house.refused] == [ErrorCode.QUEUE_FULL] * 7
    assert all(error.headers["Retry-After"] for error in house.refused)
    for _ in range(3):
        await house.leave()
    assert [number for _, number in house.order] == [10, 11, 13]
    while house.served:
        await house.leave()
    house.check()


@given(st.lists(st.booleans(), max_size=400))
def test_retries_are_a_tenth_of_the_requests_and_ten_to_begin_with(steps: list[bool]) -> None:
    budget = RetryBudget()
    requests = retries = 0
    for retry in steps:
        if retry:
            retries += budget.take()
        else:
            budget.request()
            requests += 1
        assert retries <= 10 + requests / 10 + 1e-6
