"""Limits over a change of workers: the new one takes over the old one's state, and decides from then on.

While the old one drains it asks the new one about every further request, and tells it the end of each that is
still on its way. Each keeps its own count as well, so that either can go on alone when the other is lost.
"""

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec
import structlog

from daemons.gateway.tenants.accounts import Dimension, Refused, Subject
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.limiter import Reservation
from daemons.gateway.tenants.reserve import Limits, StoreLost
from daemons.gateway.tenants.states import LimiterState

log = structlog.get_logger()

_ANSWER_SECONDS = 2.0
_TAKE_OVER_SECONDS = 5.0
_LARGEST = 256 * 1024 * 1024


class Wanted(msgspec.Struct, tag="wanted"):
    """From the old worker: may this request go on?"""

    number: int
    alias: str
    bounds: dict[str, int]
    address: str
    tokens: int


class Ended(msgspec.Struct, tag="ended"):
    """From the old worker: a request has ended; `used` is None where it never came to an engine."""

    number: int
    used: int | None


class Verdict(msgspec.Struct):
    """From the new worker: the answer to `Wanted`; the limit reached, or None."""

    number: int
    refused: tuple[Subject, Dimension, int, float] | None


class State(msgspec.Struct):
    """From the old worker, at first: everything it has counted."""

    limiter: LimiterState


_encode = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(State).decode
_decode_old = msgspec.msgpack.Decoder(Wanted | Ended).decode
_decode_new = msgspec.msgpack.Decoder(Verdict).decode


def _frame(message: msgspec.Struct) -> bytes:
    data = _encode(message)
    return len(data).to_bytes(4, "big") + data


async def _receive(reader: asyncio.StreamReader) -> bytes:
    """The next message.

    Raises:
        EOFError, OSError: the other side is gone.
        ValueError: it is too large to be one.
    """
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > _LARGEST:
        raise ValueError("a message of another kind")
    return await reader.readexactly(size)


class Successor:
    """In the old worker: the new one, which decides from now on.

    Attributes:
        closed: this worker has said its last word.
    """

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.closed = False
        self._answers: dict[int, asyncio.Future[Verdict]] = {}

    async def reserve(self, reservation: Reservation, bounds: Bounds) -> None:
        """Ask about a request that fits this worker's own limits.

        Raises:
            Refused: it does not fit.
            StoreLost: there is no answer.
        """
        answer = self._answers[reservation.number] = asyncio.get_running_loop().create_future()
        self._say(
            Wanted(
                reservation.number,
                reservation.alias,
                bounds.model_dump(exclude_none=True),
                reservation.address,
                reservation.tokens,
            )
        )
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                verdict = await answer
        except TimeoutError:
            raise StoreLost("the worker that took over does not answer") from None
        finally:
            self._answers.pop(reservation.number, None)
        if verdict.refused is not None:
            raise Refused(*verdict.refused)

    def settled(self, reservation: Reservation, used: int) -> None:
        """A request has ended."""
        self._say(Ended(reservation.number, used))

    def cancelled(self, reservation: Reservation) -> None:
        """A request never came to an engine."""
        self._say(Ended(reservation.number, None))

    def _say(self, message: msgspec.Struct) -> None:
        if not self._writer.is_closing():
            self._writer.write(_frame(message))

    async def close(self) -> None:
        """Nothing more will be said; what was said still arrives."""
        self.closed = True
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._writer.wait_closed()

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Take answers until the other side is gone."""
        try:
            while True:
                verdict = _decode_new(await _receive(reader))
                answer = self._answers.get(verdict.number)
                if answer is not None and not answer.done():
                    answer.set_result(verdict)
        except (EOFError, OSError, ValueError):
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(StoreLost("the worker that took over is gone"))


class HandOver:
    """A worker's ends of both changes: from its predecessor, and to its successor.

    Args:
        limits: the limits of this worker.
        path: where the worker that serves waits for its successor.
    """

    def __init__(self, limits: Limits, path: Path) -> None:
        self._limits = limits
        self._path = path
        self._server: asyncio.Server | None = None
        self._listening: asyncio.Task[None] | None = None
        self.successor: Successor | None = None

    async def take_over(self) -> bool:
        """Take the limits over from the worker that serves; whether there is one that hands over."""
        writer = None
        try:
            async with asyncio.timeout(_TAKE_OVER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path)
                first = _decode_state(await _receive(reader))
        except (EOFError, OSError, ValueError) as error:
            log.warning("the limits could not be taken over", reason=str(error) or type(error).__name__)
            if writer is not None:
                writer.close()
            return False
        held = self._limits.limiter.restore(first.limiter, same_boot=True)
        self._listening = asyncio.create_task(self._follow(reader, writer, held))
        return True

    async def predecessor_gone(self) -> None:
        """Wait until the worker that was taken over from has ended."""
        if self._listening is not None:
            await asyncio.wait([self._listening])

    async def offer(self) -> None:
        """Wait for a successor from now on."""
        half = self._path.with_name(f"{self._path.name}-{os.getpid()}")
        self._server = await asyncio.start_unix_server(self._hand_over, half)
        await asyncio.to_thread(half.rename, self._path)

    async def close(self) -> None:
        """Nothing more is said or heard."""
        if self._server is not None:
            self._server.close()
        if self.successor is not None:
            await self.successor.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _hand_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A successor is here: it gets everything, and decides from this moment on."""
        limits = self._limits
        successor = Successor(writer)
        writer.write(_frame(State(limits.limiter.export())))
        for reservation in limits.limiter.open.values():
            reservation.elsewhere = (*reservation.elsewhere, successor)
        former, limits.store = limits.store, successor
        self.successor = successor
        log.info("limits are handed over", open=len(limits.limiter.open))
        await successor.listen(reader)
        if not successor.closed:
            log.warning("the worker that took over is gone; limits are kept here again")
            limits.store, self.successor = former, None
            await successor.close()

    async def _follow(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: dict[int, Reservation]
    ) -> None:
        """Answer the predecessor, and take the ends of its requests, until it is gone."""
        try:
            while True:
                message = _decode_old(await _receive(reader))
                if isinstance(message, Wanted):
                    writer.write(_frame(Verdict(message.number, await self._decide(message, held))))
                elif (reservation := held.pop(message.number, None)) is not None:
                    if message.used is None:
                        reservation.cancel()
                    else:
                        reservation.settle(message.used, 0)
        except (EOFError, OSError, ValueError):
            pass
        finally:
            for reservation in held.values():
                reservation.lose()
            writer.close()

    async def _decide(
        self, wanted: Wanted, held: dict[int, Reservation]
    ) -> tuple[Subject, Dimension, int, float] | None:
        bounds = Bounds(**wanted.bounds)
        try:
            made = self._limits.limiter.reserve(wanted.alias, bounds, wanted.address, wanted.tokens)
            held[wanted.number] = made
            await self._limits.share(made, bounds)
        except Refused as refused:
            if (taken := held.pop(wanted.number, None)) is not None:
                taken.cancel()
            return (refused.subject, refused.dimension, refused.limit, refused.wait)
        return None
