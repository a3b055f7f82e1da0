"""Capacity search and comparison, against engines whose answer is known."""

from pathlib import Path

from tests.integration.loadtest.conftest import Outcome, Run
from tests.support.mock_engine import MockEngine

TRIES = 3
"""Runs on a machine that others use as well, until the kernel lets one of them be on time."""

WHOLE = ("--no-stream", "--output-tokens", "1")


def test_the_capacity_of_a_known_queue_is_found(run: Run) -> None:
    """Four slots of 40 ms each serve 100 requests/s and not one more."""
    options = ("--find-capacity", "--rate", "30", "--objective", "e2e p95 < 250ms", "--duration", "3s")
    tried: list[Outcome] = []
    while not any(map(is_right, tried)):
        assert len(tried) < TRIES, [one.text for one in tried]
        with MockEngine(first_us=40_000, token_us=0, slots=4) as engine:
            tried.append(run(engine.url, *options, *WHOLE))


def is_right(search: Outcome) -> bool:
    """Whether the capacity of four slots of 40 ms each was found, to a tenth."""
    for line in search.text.splitlines():
        if line.startswith("Capacity: between"):
            low, high = float(line.split()[2]), float(line.split()[4])
            assert search.status == 0
            assert high <= low * 1.11
            return 60 <= low < high <= 125
    return False


def test_objectives_that_cannot_be_met_at_all(run: Run) -> None:
    with MockEngine(first_us=40_000, token_us=0) as engine:
        options = ("--find-capacity", "--rate", "640", "--objective", "e2e p95 < 1ms", "--requests", "10")
        done = run(engine.url, *options, *WHOLE)
    assert done.status == 1
    assert "no rate that was tried" in done.text


def test_a_slower_engine_is_worse_and_the_same_engine_is_not(run: Run, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    load = ("--rate", "60", "--duration", "4s", "--output-tokens", "5", "--json", str(baseline))
    seen: list[list[str]] = []
    while [] not in seen:
        assert len(seen) < TRIES, seen
        with MockEngine(first_us=20_000, token_us=4000) as engine:
            run(engine.url, *load)
            again = run(engine.url, *load[:-2], "--compare", str(baseline))
        compared = [line for line in again.text.splitlines() if "p50" in line]
        assert compared
        seen.append([line for line in compared if is_worse(line)])
    with MockEngine(first_us=40_000, token_us=4000) as engine:
        slower = run(engine.url, *load[:-2], "--compare", str(baseline))
    assert slower.status == 5
    assert "worse" in slower.text
    assert "ttft p50" in slower.text


def is_worse(line: str) -> bool:
    """Whether a line of the comparison says so."""
    return line.split("│")[-2].strip() == "worse"
