"""Compares the ledger with the engines' own token counters, which nobody here can change.

Where they differ, tokens were worked on that no row accounts for: a gateway was killed with requests on their
way, somebody uses the engine past the gateway, or another gateway uses it too.
"""

import asyncio
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemons.gateway.exchange import Exchange
from daemons.gateway.pool.engine import Engine
from daemons.gateway.tenants.ledger import book
from daemons.gateway.tenants.ledger.book import Point
from daemons.gateway.tenants.ledger.ledger import Ledger
from daemons.runtime.control import EngineState

log = structlog.get_logger()

_SCRAPE_SECONDS = aiohttp.ClientTimeout(total=5.0)
_LARGEST = 16 * 1024 * 1024
_SAMPLE = re.compile(rb"^vllm:(prompt|generation)_tokens_total(?:\{[^}]*\})? (\S+)", re.MULTILINE)


class Tokens(NamedTuple):
    """Tokens of prompts and of answers."""

    prompt: int
    completion: int


class Difference(NamedTuple):
    """What an engine counted since the comparison before, and how much of it the ledger does not have."""

    counted: Tokens
    missing: Tokens
    at: float


def read_counters(page: bytes) -> Tokens | None:
    """vLLM's token counters, over all of its engines; None where a page has none."""
    sums = {b"prompt": 0.0, b"generation": 0.0}
    found = False
    for kind, value in _SAMPLE.findall(page):
        sums[kind] += float(value)
        found = True
    return Tokens(int(sums[b"prompt"]), int(sums[b"generation"])) if found else None


def compare(before: Point | None, now: Point, billed: Tokens) -> tuple[Tokens, Tokens] | None:
    """What the engine counted between two points, and how much of it was not billed.

    None where the points cannot be compared: there is no former one, or the engine was started anew.
    """
    if before is None or before.generation != now.generation or now.counter < before.counter:
        return None
    counted = Tokens(now.prompt - before.prompt, now.completion - before.completion)
    return counted, Tokens(counted.prompt - billed.prompt, counted.completion - billed.completion)


class Reconciliation(Collector):
    """Compares again and again, and shows what came of it."""

    def __init__(
        self,
        engines: Collection[Engine],
        ledger: Ledger,
        active: Callable[[], Collection[Exchange]],
        interval: float,
    ) -> None:
        """`active` are the requests on their way; `interval` is in seconds."""
        self._engines = engines
        self._ledger = ledger
        self._active = active
        self._interval = interval
        self._results: dict[str, Difference] = {}
        self._failures = {engine.name: 0 for engine in engines}

    async def run(self, over: Callable[[], bool]) -> None:
        """Compare until `over`: until another worker does."""
        while not over():
            for engine in self._engines:
                if engine.state is EngineState.READY:
                    await self.compare(engine)
            await asyncio.sleep(self._interval)

    async def compare(self, engine: Engine) -> None:
        """Compare the ledger with `engine` now; where that is not possible it is counted as a failure."""
        try:
            page = await _scrape(engine)
            counters = read_counters(page)
            if counters is None:
                raise ValueError("its metrics have no token counters")
            await self._take(engine, counters)
        except (aiohttp.ClientError, OSError, ValueError, sqlite3.Error) as error:
            self._failures[engine.name] += 1
            reason = str(error) or type(error).__name__
            log.warning("the ledger was not compared with the engine", engine=engine.name, reason=reason)

    async def _take(self, engine: Engine, counters: Tokens) -> None:
        # Without a wait in between: what is on its way here is not in the ledger up to the mark set here.
        on_their_way, report = self._on_their_way(engine), engine.report
        prompt = counters.prompt - report.own_prompt_tokens - on_their_way.prompt
        completion = counters.completion - report.own_completion_tokens - on_their_way.completion

        def question(connection: sqlite3.Connection) -> Difference | None:
            before = book.latest_point(connection, engine.name)
            *billed, row = book.tokens_since(connection, engine.name, before.row if before else 0)
            at = time.time()
            now = Point(engine.name, int(at * 1e6), row, report.generation, sum(counters), prompt, completion)
            book.set_point(connection, now)
            found = compare(before, now, Tokens(*billed))
            return Difference(*found, at) if found else None

        difference = await asyncio.wrap_future(self._ledger.ask(question))
        if difference is None:
            self._results.pop(engine.name, None)
            return
        self._results[engine.name] = difference
        if any(difference.missing):
            # Some tokens always are: an engine goes on until it hears that a client has left.
            log.info(
                "the engine counted more than the ledger",
                engine=engine.name,
                counted=difference.counted._asdict(),
                missing=difference.missing._asdict(),
            )

    def _on_their_way(self, engine: Engine) -> Tokens:
        prompt = completion = 0
        for exchange in self._active():
            if exchange.engine is engine and exchange.relay is not None:
                counts = exchange.relay.usage()
                if counts is not None:
                    prompt += counts.prompt
                    completion += counts.completion
        return Tokens(prompt, completion)

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        labels = ("engine", "kind")
        counted = GaugeMetricFamily(
            "llm_gateway_reconciliation_counted_tokens",
            "Tokens that the engine counted between the last two comparisons, its supervisor's left out",
            labels=labels,
        )
        missing = GaugeMetricFamily(
            "llm_gateway_reconciliation_missing_tokens",
            "Those of them that the ledger does not have",
            labels=labels,
        )
        at = GaugeMetricFamily(
            "llm_gateway_reconciliation_timestamp_seconds", "When they were last compared", labels=("engine",)
        )
        for name, difference in self._results.items():
            for family, tokens in ((counted, difference.counted), (missing, difference.missing)):
                for kind, value in tokens._asdict().items():
                    family.add_metric((name, kind), value)
            at.add_metric((name,), difference.at)
        failures = CounterMetricFamily(
            "llm_gateway_reconciliation_failures", "Comparisons that were not possible", labels=("engine",)
        )
        for name, count in self._failures.items():
            failures.add_metric((name,), count)
        yield from (counted, missing, at, failures)


async def _scrape(engine: Engine) -> bytes:
    """The engine's metrics.

    Raises:
        aiohttp.ClientError, OSError: they cannot be had.
    """
    url = engine.settings.url
    parts = urlsplit(url)
    connector: aiohttp.BaseConnector
    if parts.scheme == "unix":
        connector, base = aiohttp.UnixConnector(str(Path(parts.path))), "http://engine"
    else:
        connector, base = aiohttp.TCPConnector(ssl=engine.dialer.tls or True), url.rstrip("/")
    headers = {"Authorization": engine.authorization} if engine.authorization else {}
    async with (
        aiohttp.ClientSession(connector=connector, timeout=_SCRAPE_SECONDS, headers=headers) as session,
        session.get(f"{base}/metrics", raise_for_status=True) as response,
    ):
        page = bytearray()
        async for piece in response.content.iter_any():
            page += piece
            if len(page) > _LARGEST:
                raise ValueError("its metrics are too long")
        return bytes(page)
