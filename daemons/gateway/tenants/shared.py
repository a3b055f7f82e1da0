"""Limits that several gateways share, in a Valkey or Redis server; without it each goes on with its own.

Every call is one run of one script. Each process has a name of its own in the server, under which its
requests in flight are counted; one that is silent for 15 s counts nothing any more. A process that lost the
server for a moment comes back under a new name with the counts that are true then.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib import resources
from typing import Any, Protocol, cast

import structlog
from pydantic import SecretStr

from daemons.gateway.tenants.accounts import Dimension, Refused, Subject
from daemons.gateway.tenants.bounds import Bounds, SharedLimitsSettings
from daemons.gateway.tenants.limiter import Limiter, Reservation
from daemons.gateway.tenants.reserve import StoreLost
from daemons.runtime.errors import EXIT_CONFIG, Fatal

log = structlog.get_logger()

_ANSWER_SECONDS = 0.5
_HEARTBEAT_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 2.0

_SUBJECTS: tuple[Subject, ...] = ("key", "address")


class Server(Protocol):
    """Runs the script."""

    async def run(self, keys: Sequence[str], arguments: Sequence[str | int]) -> list[Any]:
        """What it returns.

        Raises:
            StoreLost: it could not be run.
        """

    async def close(self) -> None:
        """Let go of the connections."""


class RedisServer:
    """A `Server` at the address of `settings`."""

    def __init__(self, settings: SharedLimitsSettings, password: SecretStr | None) -> None:
        try:
            from redis import asyncio as client  # noqa: PLC0415 - an extra, needed only where it is configured
            from redis.driver_info import DriverInfo  # noqa: PLC0415
            from redis.exceptions import RedisError  # noqa: PLC0415
        except ImportError:
            raise Fatal(
                "shared_limits: the Python package redis is not installed: "
                "install requirements/redis.txt into this environment",
                EXIT_CONFIG,
            ) from None
        self._error = RedisError
        self._client = client.Redis.from_url(
            settings.url,
            password=password.get_secret_value() if password else None,
            socket_timeout=_ANSWER_SECONDS,
            socket_connect_timeout=_ANSWER_SECONDS,
            # Told to the server; looked up on the disk for each connection otherwise.
            driver_info=DriverInfo(),
        )
        script = resources.files(__package__).joinpath("shared.lua").read_text(encoding="utf-8")
        self._script = self._client.register_script(script)

    async def run(self, keys: Sequence[str], arguments: Sequence[str | int]) -> list[Any]:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return cast("list[Any]", await self._script(keys=list(keys), args=list(arguments)))
        except (self._error, OSError) as error:
            raise StoreLost(str(error) or type(error).__name__) from None

    async def close(self) -> None:
        await self._client.aclose()


class SharedLimits:
    """A `Store` that several gateways count in.

    Attributes:
        up: the server answers.
    """

    def __init__(self, limiter: Limiter, address_bounds: Bounds, server: Server, prefix: str) -> None:
        self._limiter = limiter
        self._address_bounds = address_bounds
        self._server = server
        self._prefix = prefix
        self._name = secrets.token_hex(8)
        # Reservations that the server counts as in flight here; -1 for one without tokens there.
        self._counted: dict[int, int] = {}
        self._asked: dict[int, asyncio.Task[None]] = {}
        self._late: list[Callable[[], Awaitable[None]]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.up = False

    async def run(self) -> None:
        """Stay known to the server, and come back to it when it was lost."""
        while True:
            try:
                await (self._call("adopt") if self.up else self._adopt())
            except StoreLost as error:
                self._lost(error)
            except Exception as error:
                # Whatever it is: the limits of this gateway hold, and the next try comes.
                log.exception("shared limits")
                self._lost(StoreLost(str(error)))
            await asyncio.sleep(_HEARTBEAT_SECONDS if self.up else _RETRY_SECONDS)

    async def reserve(self, reservation: Reservation, bounds: Bounds) -> None:
        """Take a request that fits the limits here.

        Raises:
            Refused: it does not fit together with those of other gateways.
            StoreLost: the server does not answer.
        """
        if not self.up:
            raise StoreLost("the server is not there")
        # A request that is given up meanwhile must be given back, hence the answer is always waited for.
        asking = asyncio.create_task(self._ask(reservation, bounds))
        self._asked[reservation.number] = asking
        asking.add_done_callback(lambda _: self._asked.pop(reservation.number, None))
        await asyncio.shield(asking)

    async def _ask(self, reservation: Reservation, bounds: Bounds) -> None:
        arguments = _limits(bounds)
        if reservation.address:
            arguments += _limits(self._address_bounds)
        try:
            answer = await self._call("reserve", reservation, arguments)
        except StoreLost as error:
            self._lost(error)
            raise
        account, *rest = answer
        if account == 0:
            self._counted[reservation.number] = rest[0]
            return
        dimension = cast("Dimension", rest[0].decode())
        wait = float(rest[2])
        if wait < 0:
            at = self._limiter.periods()
            wait = (at.day_ends if dimension == "day" else at.month_ends) - self._limiter.wall()
        raise Refused(_SUBJECTS[account - 1], dimension, int(rest[1]), wait)

    def settled(self, reservation: Reservation, used: int) -> None:
        """A request has ended."""
        self._after(reservation, lambda: self._book(reservation, used, cancelled=False))

    def cancelled(self, reservation: Reservation) -> None:
        """A request never came to an engine."""
        self._after(reservation, lambda: self._book(reservation, 0, cancelled=True))

    def _after(self, reservation: Reservation, book: Callable[[], Awaitable[None]]) -> None:
        """Book once the server has answered about the reservation, and knows who we are."""
        asking = self._asked.get(reservation.number)
        if asking is not None and not asking.done():
            asking.add_done_callback(lambda _: self._after(reservation, book))
        elif self._late is not None:
            self._late.append(book)
        else:
            self._start(book)

    def _start(self, book: Callable[[], Awaitable[None]]) -> None:
        async def work() -> None:
            await book()

        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _book(self, reservation: Reservation, used: int, *, cancelled: bool) -> None:
        in_flight = reservation.number in self._counted
        second = self._counted.pop(reservation.number, -1)
        known = second >= 0
        if not self.up or (cancelled and not in_flight):
            return
        requests = -1 if cancelled and known else 0 if known or cancelled else 1
        try:
            await self._call("book", reservation, [second, used, requests, -1 if in_flight else 0])
        except StoreLost as error:
            self._lost(error)

    async def _adopt(self) -> None:
        """Come back under a new name, with what is in flight here at this moment."""
        self._name = secrets.token_hex(8)
        # The end of any other one is told to somebody else: what a predecessor counts, say, by itself.
        opened = [one for one in self._limiter.open.values() if self in one.elsewhere]
        self._counted = {one.number: self._counted.get(one.number, -1) for one in opened}
        flights: dict[str, int] = {}
        for one in opened:
            for key in self._keys(one)[1:]:
                flights[key] = flights.get(key, 0) + 1
        self._late = []
        try:
            keys = [f"{self._prefix}:gateways", *flights]
            await self._server.run(keys, self._arguments("adopt", None, flights.values()))
            self.up = True
            log.info("limits are shared", in_flight=len(opened))
        finally:
            late, self._late = self._late, None
            for book in late:
                self._start(book)

    async def _call(
        self, action: str, reservation: Reservation | None = None, more: Iterable[str | int] = ()
    ) -> list[Any]:
        return await self._server.run(self._keys(reservation), self._arguments(action, reservation, more))

    def _keys(self, reservation: Reservation | None) -> list[str]:
        keys = [f"{self._prefix}:gateways"]
        if reservation is not None:
            keys.append(f"{self._prefix}:key:{reservation.alias}")
            if reservation.address:
                keys.append(f"{self._prefix}:address:{reservation.address}")
        return keys

    def _arguments(
        self, action: str, reservation: Reservation | None, more: Iterable[str | int]
    ) -> list[str | int]:
        # A request that ends after midnight is corrected in the day in which it was reserved.
        at = reservation.at if reservation is not None else self._limiter.periods()
        return [action, self._name, reservation.tokens if reservation else 0, at.day, at.month, *more]

    def _lost(self, error: StoreLost) -> None:
        if self.up:
            log.error("limits are not shared at present; those of this gateway hold", reason=str(error))
        self.up = False

    async def close(self) -> None:
        """Wait for what is being booked, and let go of the server."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                # The answer to one may be what another waits for.
                while booked := {*self._asked.values(), *self._tasks}:
                    await asyncio.wait(booked)
        await self._server.close()


def _limits(bounds: Bounds) -> list[str | int]:
    return [-1 if limit is None else limit for limit in bounds.figures]
