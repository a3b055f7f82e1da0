"""From records to results: windows, groups, figures, reports, exit statuses."""

import io

import msgspec
import pytest
from rich.console import Console

from daemons.loadtest.client.records import Outcome
from daemons.loadtest.command import Exit, exit_status
from daemons.loadtest.load.plan import Constant, Plan
from daemons.loadtest.measure.analysis import analyse
from daemons.loadtest.measure.results import Result
from daemons.loadtest.measure.samples import Gauge
from daemons.loadtest.report.page import render_page
from daemons.loadtest.report.text import print_result
from tests.unit.loadtest.runs import record, result_of, run_of, steady


def test_figures_of_a_known_run() -> None:
    result = result_of(steady(0.1), "ttft p95 < 1s", "e2e p99 < 105ms", "goodput > 90%")
    group = result.overall
    assert (group.requests, group.ok, group.output_tokens) == (1000, 1000, 11_000)
    assert group.request_rate == pytest.approx(10, rel=0.01)
    assert group.output_token_rate == pytest.approx(110, rel=0.01)
    assert group.latencies["e2e"].p50 == pytest.approx(0.105, rel=0.01)
    assert group.latencies["tpot"].p50 == pytest.approx(0.105 / 2 / 10, rel=0.01)
    assert group.latencies["normalised"].p50 == pytest.approx(0.105 / 11, rel=0.01)
    assert [check.met for check in result.checks] == [True, False, False]
    assert result.steady
    assert result.valid


def test_a_slow_beginning_is_left_out() -> None:
    cold = [record(n * 0.1, 1.0) for n in range(100)]
    rest = [record(10 + n * 0.1, 0.1 * (1 + (n % 7) / 50)) for n in range(900)]
    result = result_of([*cold, *rest], warmup=None)
    assert 9 <= result.window[0] <= 12
    assert "detected" in result.warmup
    assert result.overall.latencies["e2e"].max < 0.2


def test_latency_that_keeps_rising_is_not_steady() -> None:
    result = result_of([record(n * 0.1, 0.1 + n * 0.01) for n in range(1000)], warmup=None)
    assert not result.steady
    assert "saturated" in result.steady_note


def test_failures_are_counted_apart_and_have_no_latency() -> None:
    rows = [record(n, 0.1, Outcome.OK if n % 4 else Outcome.CUT) for n in range(100)]
    group = result_of(rows, "errors < 20%").overall
    assert (group.failed, group.outcomes) == (25, {"cut": 25, "ok": 75})
    assert group.error_share == 0.25
    assert group.latencies["e2e"].count == 75


def test_a_busy_generator_invalidates() -> None:
    assert not result_of(steady(0.1), cpu=0.97).valid
    late = [msgspec.structs.replace(r, sent=r.sent + 0.05) for r in steady(0.1)]
    assert "sent late" in result_of(late).invalid[0]


def test_a_long_wait_for_the_last_answers_does_not_hide_a_busy_generator() -> None:
    gauges = [Gauge(0, 0, 0, 0), Gauge(50, 9, 0, 48), Gauge(100, 9, 0, 97), Gauge(400, 0, 0, 98)]
    measured = run_of(steady(0.1), Plan(load=Constant(rate=10), duration=100, warmup=0))
    assert not analyse(msgspec.structs.replace(measured, gauges=gauges, ended=400)).valid


def test_a_step_that_was_cut_short_has_the_rate_of_the_time_it_had() -> None:
    steps = {"shape": "steps", "steps": [{"rate": rate, "seconds": 10} for rate in (2, 4, 8)]}
    rows = [record(n / 2, 0.1) for n in range(20)] + [record(10 + n / 4, 0.1) for n in range(20)]
    measured = run_of(rows, Plan.model_validate({"load": steps, "duration": 15}), seconds=15)
    found = [(g.name, round(g.offered_rate, 1)) for g in analyse(measured).groups if g.kind == "step"]
    assert found == [("1: 2/s", 2.0), ("2: 4/s", 4.0)]


def test_waiting_for_a_client_is_no_fault_of_the_generator() -> None:
    result = result_of([record(n * 0.1, 0.1, wait=1.0) for n in range(1000)])
    assert result.valid
    assert result.overall.latencies["e2e"].p50 == pytest.approx(1.1)
    assert result.overall.latencies["e2e_from_send"].p50 == pytest.approx(0.1)


def test_a_run_without_any_request_has_a_report() -> None:
    result = result_of([], "ttft p95 < 1s", seconds=1)
    console = Console(record=True, width=120, file=io.StringIO())
    print_result(console, result)
    assert "not measured" in console.export_text()
    assert "not measured" in render_page(result)


def test_a_result_survives_being_saved() -> None:
    result = result_of(steady(0.1), "e2e p99 < 1s")
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result) == result


def test_the_time_before_the_first_answers_is_left_out() -> None:
    """10 requests/s of 2 s each: in the first 2 s nothing can end, and the rate is 10/s nevertheless."""
    rows = [record(n * 0.1, 2.0) for n in range(200)]
    result = result_of(rows, warmup=None, seconds=20)
    assert result.window[0] == pytest.approx(2, abs=0.1)
    assert result.overall.request_rate == pytest.approx(10, rel=0.01)
    assert result.overall.offered_rate == pytest.approx(10, rel=0.01)
    short = result_of(rows[:40], warmup=None, seconds=4)
    assert short.window[0] == 0, "of a run that is little longer than a request nothing can be left out"


def test_goodput_is_never_above_the_rate() -> None:
    group = result_of([record(n * 0.1, 2.0) for n in range(100)], "e2e p99 < 10s", seconds=10).overall
    assert group.goodput == group.request_rate == pytest.approx(8, rel=0.02)


@pytest.mark.parametrize("outcome", [Outcome.ABANDONED, Outcome.TIMEOUT, Outcome.STALL])
def test_requests_that_took_too_long_to_be_measured_count_against_a_percentile(outcome: Outcome) -> None:
    rows = [record(n, 0.1, Outcome.OK if n % 10 else outcome) for n in range(100)]
    checks = result_of(rows, "e2e p50 < 1s", "e2e p95 < 1s").checks
    assert [check.met for check in checks] == [True, False]


def test_a_run_in_which_nothing_succeeded_does_not_blame_the_generator() -> None:
    """Refusals come so fast that a closed loop saturates its core."""
    refused = result_of([record(n * 0.01, 0.001, Outcome.CLIENT_ERROR) for n in range(1000)], cpu=1.0)
    assert refused.valid
    assert "no request succeeded" in refused.warnings[0]
    assert not result_of([record(n * 0.01, 0.001) for n in range(1000)], cpu=1.0).valid


@pytest.mark.parametrize(("rows", "banner"), [(1000, "banner good"), (3, "could be chance")])
def test_an_objective_is_met_for_certain_or_perhaps_by_chance(rows: int, banner: str) -> None:
    result = result_of(steady(0.1, rows), "e2e p95 < 1s", "errors < 1%")
    assert all(check.met for check in result.checks)
    assert banner in render_page(result)
    assert ("banner good" in render_page(result)) == (rows == 1000)


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ((Outcome.OK,), Exit.DONE),
        ((Outcome.OK, Outcome.RESET), Exit.DONE),
        ((Outcome.CANCELLED,), Exit.DONE),
        ((Outcome.RATE_LIMITED,), Exit.MISSED),
        ((Outcome.ABANDONED,), Exit.MISSED),
        ((Outcome.CONNECT_FAILED, Outcome.TIMEOUT), Exit.TARGET_GONE),
        ((Outcome.CONNECT_FAILED, Outcome.OVERLOADED), Exit.MISSED),
        ((Outcome.STALL,), Exit.MISSED),
    ],
)
def test_the_exit_status_of_what_came_back(outcomes: tuple[Outcome, ...], status: Exit) -> None:
    rows = [record(n, 0.1, outcomes[n % len(outcomes)]) for n in range(100)]
    assert exit_status(result_of(rows)) == status
