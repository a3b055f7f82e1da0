"""The search for a capacity, and the comparison of two runs."""

import io
from collections.abc import Callable

import msgspec
import pytest
from rich.console import Console

from daemons.loadtest.command import Exit, exit_status
from daemons.loadtest.measure.capacity import Capacity, find_capacity
from daemons.loadtest.measure.compare import compare
from daemons.loadtest.measure.results import Result
from daemons.loadtest.measure.saved import saved
from daemons.loadtest.report.page import render_page
from daemons.loadtest.report.text import capacity_sentence, print_comparison
from tests.unit.loadtest.runs import result_of, steady


def saturating(limit: float) -> Callable[[float], Result]:
    return lambda rate: result_of(steady(0.1 if rate <= limit else 0.5), "e2e p95 < 200ms")


@pytest.mark.parametrize("limit", [3.0, 37.0, 410.0])
async def test_the_search_brackets_the_limit(limit: float) -> None:
    run = saturating(limit)

    async def probe(rate: float) -> Result:
        return run(rate)

    found = await find_capacity(probe, 10, 100_000, lambda _: None)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= limit < found.high <= found.low * 1.1 + 1e-9
    assert capacity_sentence(found).startswith("Capacity: between")


async def test_the_search_stops_at_its_ceiling_and_at_its_own_limit() -> None:
    async def easy(_: float) -> Result:
        return result_of(steady(0.1), "e2e p95 < 200ms")

    async def busy(_: float) -> Result:
        return result_of(steady(0.1), "e2e p95 < 200ms", cpu=0.99)

    async def hopeless(_: float) -> Result:
        return result_of(steady(0.9), "e2e p95 < 200ms")

    ceiling = await find_capacity(easy, 10, 70, lambda _: None)
    assert (ceiling.low, ceiling.high) == (70, None)
    assert "own limit" in capacity_sentence(Capacity(low=1, high=None, probes=[], note="own limit"))
    spoiled = await find_capacity(busy, 10, 70, lambda _: None)
    assert spoiled.note == "the generator itself is at its limit"
    assert len(spoiled.probes) == 2, "one late run on a busy machine does not end a search"
    assert (await find_capacity(hopeless, 10, 70, lambda _: None)).low is None


async def test_a_search_that_is_interrupted_tries_nothing_more() -> None:
    async def asked(_: float) -> Result:
        result = result_of(steady(0.5), "e2e p95 < 200ms")
        result.stopped_by = "asked"
        return result

    found = await find_capacity(asked, 10, 70, lambda _: None)
    assert len(found.probes) == 1
    assert exit_status(found.probes[0].result, None, found) == Exit.INTERRUPTED


async def test_a_search_is_saved_with_its_answer() -> None:
    async def probe(rate: float) -> Result:
        return saturating(37)(rate)

    found = await find_capacity(probe, 10, 100_000, lambda _: None)
    data = msgspec.json.encode(saved(found.probes[0].result, None, found))
    search = msgspec.json.decode(data)["search"]
    assert (search["low"], search["high"]) == (found.low, found.high)
    assert {tried["verdict"] for tried in search["tried"]} == {"met", "missed"}
    assert msgspec.json.decode(data, type=Result).overall.requests == 1000


def test_a_change_is_told_from_chance() -> None:
    before = result_of(steady(0.1))
    slower, same = compare(before, result_of(steady(0.13))), compare(before, result_of(steady(0.1)))
    assert slower.regressed
    assert not same.regressed
    assert {d.verdict for d in slower.differences if d.figure.startswith("e2e")} == {"worse"}
    assert not compare(result_of(steady(0.13)), before).regressed
    console = Console(record=True, quiet=False, width=150, file=io.StringIO())
    print_comparison(console, slower)
    assert "worse" in console.export_text()
    assert "worse" in render_page(before, slower)
