"""Capacity search and comparison, against engines whose answer is known."""

from pathlib import Path

from tests.integration.loadtest.conftest import Run
from tests.support.mock_engine import MockEngine

WHOLE = ("--no-stream", "--output-tokens", "1")


def test_the_capacity_of_a_known_queue_is_found(run: Run) -> None:
    """Four slots of 40 ms each serve 100 requests/s and not one more."""
    with MockEngine(first_us=40_000, token_us=0, slots=4) as engine:
        options = ("--find-capacity", "--rate", "30", "--objective", "e2e p95 < 250ms", "--duration", "3s")
        done = run(engine.url, *options, *WHOLE)
    assert done.status == 0, done.text
    sentence = next(line for line in done.text.splitlines() if line.startswith("Capacity: between"))
    low, high = float(sentence.split()[2]), float(sentence.split()[4])
    assert 60 <= low < high <= 125
    assert high <= low * 1.11


def test_objectives_that_cannot_be_met_at_all(run: Run) -> None:
    with MockEngine(first_us=40_000, token_us=0) as engine:
        options = ("--find-capacity", "--rate", "640", "--objective", "e2e p95 < 1ms", "--requests", "10")
        done = run(engine.url, *options, *WHOLE)
    assert done.status == 1
    assert "no rate that was tried" in done.text


def test_a_slower_engine_is_worse_and_the_same_engine_is_not(run: Run, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    load = ("--rate", "60", "--duration", "4s", "--output-tokens", "5", "--json", str(baseline))
    with MockEngine(first_us=20_000, token_us=4000) as engine:
        run(engine.url, *load)
        again = run(engine.url, *load[:-2], "--compare", str(baseline))
    with MockEngine(first_us=40_000, token_us=4000) as engine:
        slower = run(engine.url, *load[:-2], "--compare", str(baseline))
    assert slower.status == 5
    assert "worse" in slower.text
    assert "ttft p50" in slower.text
    assert "worse" not in [line.split("│")[-2].strip() for line in again.text.splitlines() if "p50" in line]
