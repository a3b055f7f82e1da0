"""The bounded queue in front of the engines of a model.

Requests wait here, where their order can still be decided, and not inside an engine.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.pool.engine import Engine
from daemons.gateway.pool.pick import Asked
from daemons.gateway.pool.pool import Pool
from daemons.gateway.settings import PRIORITIES, Priority, QueueSettings


class Ticket:
    """A request that waits for a place."""

    __slots__ = ("asked", "place", "priority", "queued", "since")

    def __init__(self, asked: Asked, priority: Priority, since: float, place: asyncio.Future[Engine]) -> None:
        self.asked = asked
        self.priority = priority
        self.since = since
        self.place = place
        self.queued = False


class Order(Protocol):
    """Decides who is next; holds the waiting tickets of one model."""

    def add(self, ticket: Ticket) -> None:
        """`ticket` begins to wait."""

    def remove(self, ticket: Ticket) -> None:
        """`ticket` does not wait any more."""

    def first(self) -> Ticket | None:
        """The next one to be served, which goes on waiting until it is removed."""

    def last(self) -> Ticket | None:
        """The one to be served last, which goes on waiting until it is removed."""

    def waiting(self) -> dict[Priority, int]:
        """How many wait, by class."""


class FirstComeByClass:
    """The most urgent class first, within a class in order of arrival."""

    def __init__(self) -> None:
        self._lines: dict[Priority, deque[Ticket]] = {priority: deque() for priority in PRIORITIES}

    def add(self, ticket: Ticket) -> None:
        self._lines[ticket.priority].append(ticket)

    def remove(self, ticket: Ticket) -> None:
        self._lines[ticket.priority].remove(ticket)

    def first(self) -> Ticket | None:
        return next((line[0] for line in self._lines.values() if line), None)

    def last(self) -> Ticket | None:
        return next((line[-1] for line in reversed(self._lines.values()) if line), None)

    def waiting(self) -> dict[Priority, int]:
        return {priority: len(line) for priority, line in self._lines.items()}


class Admission:
    """Gives requests a place at an engine, at once or after a wait."""

    def __init__(self, pool: Pool, settings: QueueSettings, order: Callable[[], Order]) -> None:
        self._pool = pool
        self._settings = settings
        self._orders = {model: order() for model in pool.models}
        self._sizes = dict.fromkeys(pool.models, 0)
        self._waiting = 0
        self._closed = False

    def waiting(self, model: str) -> dict[Priority, int]:
        """How many wait for `model`, by class."""
        return self._orders[model].waiting()

    def enter_at_once(self, asked: Asked, now: float) -> Engine | None:
        """A place without waiting, where nobody waits already; the engine's `in_flight` counts it."""
        if self._sizes[asked.model] or self._closed:
            return None
        engine = self._pool.pick(asked, now)
        if engine is not None:
            engine.in_flight += 1
        return engine

    async def enter(self, asked: Asked, priority: Priority) -> Engine:
        """Wait for a place; the engine's `in_flight` counts it. Cancelled, it gives everything back.

        Raises:
            ApiError: no engine lives, the queue is full or closed, or the wait took too long.
        """
        loop = asyncio.get_running_loop()
        model = asked.model
        if self._closed:
            raise _closing()
        if not self._pool.lives(model, monotonic()):
            raise self.no_engine(model)
        if self._sizes[model] >= self._settings.depth:
            self._make_room(model, priority)
        ticket = Ticket(asked, priority, monotonic(), loop.create_future())
        self._enqueue(ticket)
        try:
            async with asyncio.timeout(getattr(self._settings.deadlines, priority)):
                return await ticket.place
        except TimeoutError:
            self._give_back(ticket)
            wait = self._seconds_for(model, self._sizes[model] + 1)
            raise ApiError(
                ErrorCode.QUEUE_TIMEOUT,
                f"No engine for {model} became free in time; try again in {wait} s.",
                headers={"Retry-After": str(wait)},
            ) from None
        except asyncio.CancelledError:
            self._give_back(ticket)
            raise

    def leave(self, engine: Engine, now: float) -> None:
        """Give back a place at `engine`, and let the next one in."""
        engine.in_flight -= 1
        if self._waiting:
            for served in engine.settings.models:
                self.pump(served, now)

    def pump(self, model: str, now: float) -> None:
        """Let in whoever can go; with no engine alive, turn everybody away."""
        while self._sizes[model]:
            ticket = self._orders[model].first()
            if ticket is None:
                return
            if ticket.place.done():
                # Its client has just left, and it has not run since.
                self._dequeue(ticket)
                continue
            engine = self._pool.pick(ticket.asked, now)
            if engine is None:
                if not self._pool.lives(model, now):
                    self._turn_away(ticket, self.no_engine(model))
                    continue
                return
            self._dequeue(ticket)
            engine.in_flight += 1
            ticket.place.set_result(engine)

    def close(self) -> None:
        """Turn everybody away who waits, and whoever still comes."""
        self._closed = True
        for order in self._orders.values():
            while (ticket := order.first()) is not None:
                self._turn_away(ticket, _closing())

    def no_engine(self, model: str) -> ApiError:
        """The refusal while no engine of `model` answers requests."""
        return ApiError(
            ErrorCode.NO_ENGINE,
            f"No engine serves {model} at the moment ({self._pool.describe(monotonic(), model)}).",
            headers={"Retry-After": "5"},
        )

    def _make_room(self, model: str, priority: Priority) -> None:
        """In a full queue, turn away who would be served last, if of a less urgent class than `priority`.

        Raises:
            ApiError: the queue is full of requests that are as urgent.
        """
        wait = self._seconds_for(model, self._sizes[model])
        full = ApiError(
            ErrorCode.QUEUE_FULL,
            f"Too many requests wait for {model}; try again in {wait} s.",
            headers={"Retry-After": str(wait)},
        )
        last = self._orders[model].last()
        if last is None or PRIORITIES.index(last.priority) <= PRIORITIES.index(priority):
            raise full
        self._turn_away(last, full)

    def _seconds_for(self, model: str, places: int) -> int:
        """Whole seconds until so many places have come free, between 1 and 600 (Little's law)."""
        per_second = sum(
            max(1, engine.in_flight) / max(0.001, engine.held_seconds) for engine in self._pool.serving(model)
        )
        return max(1, min(600, round(places / per_second)))

    def _enqueue(self, ticket: Ticket) -> None:
        ticket.queued = True
        self._orders[ticket.asked.model].add(ticket)
        self._sizes[ticket.asked.model] += 1
        self._waiting += 1

    def _dequeue(self, ticket: Ticket) -> None:
        ticket.queued = False
        self._orders[ticket.asked.model].remove(ticket)
        self._sizes[ticket.asked.model] -= 1
        self._waiting -= 1

    def _turn_away(self, ticket: Ticket, error: ApiError) -> None:
        self._dequeue(ticket)
        if not ticket.place.done():
            ticket.place.set_exception(error)

    def _give_back(self, ticket: Ticket) -> None:
        """Undo `enter`: out of the line, or, where a place came in the same moment, out of the engine."""
        if ticket.queued:
            self._dequeue(ticket)
        elif ticket.place.done() and not ticket.place.cancelled() and ticket.place.exception() is None:
            self.leave(ticket.place.result(), monotonic())


def _closing() -> ApiError:
    return ApiError(
        ErrorCode.SHUTTING_DOWN, "The server is going down; try again in 1 s.", headers={"Retry-After": "1"}
    )
