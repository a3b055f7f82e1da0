"""The lines of requests that have ended: one form, whichever way they took, and no key in any of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import pytest

from daemons.gateway.errors import ErrorCode
from daemons.gateway.exchange import Exchange
from daemons.gateway.history import History, Record
from daemons.gateway.metrics import Metrics, Series
from daemons.gateway.relay.relay import Client, Patience, Relay
from daemons.gateway.settle import Bill, Settle
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.limiter import Limiter, Reservation
from daemons.gateway.tenants.ring import Tenant
from daemons.runtime import logs
from daemons.runtime.logs import Records

SECRET = "sk-0123456789abcdef"
KEYS = {"time", "level", "service", "event", *Record.__struct_fields__}


class Settled:
    """The end of requests, and what is logged of them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        logs.configure("llm-gateway", stream=stream)
        self._metrics = Metrics()
        bill = mock.create_autospec(Bill, instance=True)
        self.settle = Settle(self._metrics, Records("llm-gateway", "request", stream), History(1), bill)

    def end(
        self,
        failure: ErrorCode | None,
        detail: str = "",
        unknown: str = "",
        relay: Relay | None = None,
        reservation: Reservation | None = None,
    ) -> None:
        """End a request for a model; `unknown` is one that there is not."""
        tenant = Tenant("team", limits=Bounds(), cache_group="team")
        exchange = Exchange("r1", tenant, "chat", 0.0, "192.0.2.7", model=unknown or "m")
        if not unknown:
            exchange.series = self._metrics.series("m", "chat", "default")
        exchange.relay, exchange.reservation = relay, reservation
        self.settle(exchange, failure, 1.0, detail)

    def lines(self) -> list[dict[str, Any]]:
        """What was written."""
        self._stream.seek(0)
        return [json.loads(line) for line in self._stream]


@pytest.fixture
async def settled(tmp_path: Path) -> AsyncIterator[Settled]:
    with (tmp_path / "log").open("w+") as stream:
        yield Settled(stream)


@pytest.mark.parametrize("failure", [None, ErrorCode.CLIENT_GONE, ErrorCode.RATE_LIMIT_EXCEEDED])
async def test_lines_of_what_the_gateway_knows_itself_are_written_together(
    settled: Settled, failure: ErrorCode | None
) -> None:
    settled.end(failure)
    settled.end(failure)
    assert not settled.lines()
    async with asyncio.timeout(10):
        while not settled.lines():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for line in settled.lines():
        assert set(line) == KEYS
        assert (line["level"], line["event"], line["model"]) == ("info", "request", "m")
        assert line["outcome"] == (failure or "ok")


async def test_what_an_engine_or_a_client_says_is_logged_without_its_keys(settled: Settled) -> None:
    settled.end(ErrorCode.ENGINE_ERROR, f"no {SECRET} here")
    settled.end(ErrorCode.MODEL_NOT_FOUND, unknown=SECRET)
    told, asked = settled.lines()
    assert set(told) == {*KEYS, "detail"}
    assert (told["level"], told["outcome"], told["detail"]) == (
        "info",
        "engine_error",
        "no sk-[redacted] here",
    )
    assert set(asked) == KEYS
    assert (asked["outcome"], asked["model"]) == ("model_not_found", "sk-[redacted]")


@pytest.mark.parametrize("left", [False, True])
async def test_only_what_left_for_an_engine_is_paid_for(settled: Settled, left: bool) -> None:
    limiter = Limiter(Bounds(), lambda: 0.0, lambda: 0.0)
    reservation = limiter.reserve("team", Bounds(), "", 1000)
    patience = Patience(first_byte=1, between_chunks=1, total=1, keep_alive=1)
    relay = Relay(mock.create_autospec(Client, instance=True), b"", patience, Series(), True)
    relay.left = left
    settled.end(ErrorCode.CLIENT_GONE, relay=relay, reservation=reservation)
    assert limiter.keys["team"].requests.total == left
