"""From records to results: windows, groups, attribution, capacity, comparison, reports."""

import io
from array import array
from collections.abc import Callable, Sequence
from math import nan

import msgspec
import pytest
from rich.console import Console

from daemons.loadtest.client.frames import Progress
from daemons.loadtest.client.records import Outcome, Record, Records
from daemons.loadtest.command import Exit, exit_status
from daemons.loadtest.load.plan import Constant, Plan
from daemons.loadtest.measure.analysis import analyse
from daemons.loadtest.measure.attribution import attribute
from daemons.loadtest.measure.capacity import Capacity, find_capacity
from daemons.loadtest.measure.compare import compare
from daemons.loadtest.measure.results import Latency, Result
from daemons.loadtest.measure.samples import Gauge, Measured
from daemons.loadtest.measure.saved import saved
from daemons.loadtest.measure.scrape import (
    Kind,
    Snapshot,
    Source,
    bucket_percentile,
    histogram_delta,
    parse_metrics,
)
from daemons.loadtest.report.live import Figures, render, sparkline
from daemons.loadtest.report.page import render_page
from daemons.loadtest.report.svg import line_plot, ticks
from daemons.loadtest.report.text import capacity_sentence, print_comparison, print_result

SILENT = {Outcome.CONNECT_FAILED, Outcome.RESET, Outcome.TIMEOUT, Outcome.ABANDONED}


def record(at: float, seconds: float, outcome: Outcome = Outcome.OK, wait: float = 0.0) -> Record:
    ok = outcome is Outcome.OK
    sent, end = at + wait, at + wait + seconds
    return Record(
        intended=at, due=sent, sent=sent, first=sent + seconds / 2 if ok else nan, last=end if ok else nan,
        end=end, prompt_tokens=10 if ok else -1, output_tokens=11 if ok else -1, cached_tokens=0,
        gaps=10 if ok else 0,
        type=0, key=0, status=0 if outcome in SILENT else 200, outcome=outcome, slow=0, redialled=0,
    )  # fmt: skip


def result_of(
    rows: Sequence[Record], *objectives: str, cpu: float = 0.1, warmup: float | None = 0, seconds: float = 100
) -> Result:
    load = Constant(rate=max(1, len(rows)) / seconds)
    plan = Plan.model_validate(
        {"load": load, "duration": seconds, "objectives": objectives, "warmup": warmup}
    )
    return analyse(run_of(rows, plan, cpu, seconds))


def run_of(rows: Sequence[Record], plan: Plan, cpu: float = 0.1, seconds: float = 100) -> Measured:
    records = Records()
    for row in rows:
        records.add(row, array("f", [(row.last - row.first) / 10] * row.gaps))
    return Measured(
        plan=plan, started="2026-01-01", target="http://localhost", model="m", types=["a"],
        records=records,
        loop_lags=array("f", [0.001]),
        gauges=[Gauge(seconds * n / 10, 1, 0, cpu * seconds * n / 10) for n in range(11)],
        stopped_by="complete", sending_ended=seconds, ended=seconds + 1,
    )  # fmt: skip


def steady(seconds: float, count: int = 1000) -> list[Record]:
    return [record(n * 100 / count, seconds * (1 + (n * 7919 % 100) / 1000)) for n in range(count)]


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


# -- capacity


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


# -- comparison


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


# -- attribution

ENGINE = """\
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{{engine="0"}} {preemptions}
vllm:num_preemptions_created{{engine="0"}} 1
{kv}{{engine="0"}} 0.97
vllm:request_queue_time_seconds_bucket{{le="0.1"}} {fast}
vllm:request_queue_time_seconds_bucket{{le="5"}} {all}
vllm:request_queue_time_seconds_bucket{{le="+Inf"}} {all}
vllm:request_prefill_time_seconds_bucket{{le="0.1"}} {all}
vllm:request_prefill_time_seconds_bucket{{le="+Inf"}} {all}
python_gc_objects 1
"""
GPU = """\
gpu_clock_event_active{{gpu="0",reason="hw_thermal_slowdown"}} {hot}
gpu_clock_event_active{{gpu="0",reason="gpu_idle"}} 1
gpu_clock_limited_seconds_total{{gpu="0",policy="thermal"}} {limited}
gpu_clock_limited_seconds_total{{gpu="0",policy="low_utilization"}} {limited}
"""


def snapshot(kind: Kind, at: float, text: str) -> Snapshot:
    return Snapshot(Source(kind, f"http://{kind}"), at, parse_metrics(text))


@pytest.mark.parametrize("kv", ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"])
def test_the_tail_its_cause_and_what_else_happened(kv: str) -> None:
    records = Records()
    for row in steady(0.1, 100):
        records.add(row, array("f", [0.01] * 10))
    found = attribute(
        [
            snapshot("engine", 0, ENGINE.format(kv=kv, preemptions=5, fast=50, all=50)),
            snapshot("gpu", 0, GPU.format(hot=0, limited=3)),
            snapshot("engine", 50, ENGINE.format(kv=kv, preemptions=9, fast=130, all=150)),
            snapshot("gpu", 50, GPU.format(hot=1, limited=5)),
        ],
        {"x": "x could not be scraped"},
        records,
        (0, 100),
    )
    assert found is not None
    assert found.verdict == "to the first token 100% engine queue; end to end 100% engine queue"
    notes = "\n".join(found.notes)
    assert "4 preemptions" in notes
    assert "KV cache use reached 97%" in notes
    assert "hw_thermal_slowdown in 1 of 2 scrapes" in notes
    assert "limited for 2.0 s by thermal" in notes
    assert "idle" not in notes
    assert "low_utilization" not in notes
    assert found.problems == ["x could not be scraped"]


@pytest.mark.parametrize(("slowest", "said"), [(0.012, True), (0.04, False)])
def test_decode_that_is_long_because_answers_are_is_told_apart(slowest: float, said: bool) -> None:
    decode = """\
vllm:request_decode_time_seconds_bucket{{le="0.1"}} {}
vllm:request_decode_time_seconds_bucket{{le="5"}} {}
vllm:request_decode_time_seconds_bucket{{le="+Inf"}} {}
"""
    snapshots = [
        snapshot("engine", 0, decode.format(0, 0, 0)), snapshot("engine", 9, decode.format(80, 100, 100))
    ]  # fmt: skip
    pace = Latency(count=100, mean=0.01, p50=0.01, p90=0.01, p95=0.01, p99=slowest, max=slowest)
    found = attribute(snapshots, {}, Records(), (0, 10), pace)
    assert found is not None
    assert any("where answers are long" in note for note in found.notes) == said


def test_the_last_scrape_does_not_count_twice_in_its_second() -> None:
    scrapes = [(0.0, 3), (0.8, 5), (1.2, 7)]
    found = attribute(
        [snapshot("engine", at, f"vllm:num_requests_running {count}\n") for at, count in scrapes],
        {},
        Records(),
        (0, 2),
    )
    assert found is not None
    assert found.series["engine running"] == [(0.0, 3.0), (1.0, 7.0)]


def test_nothing_scraped_is_no_attribution() -> None:
    assert attribute([], {}, Records(), (0, 1)) is None


def test_a_counter_that_was_reset_is_new() -> None:
    name = "vllm:request_queue_time_seconds"
    first = parse_metrics(f'{name}_bucket{{le="1"}} 90\n{name}_bucket{{le="+Inf"}} 100\n')
    last = parse_metrics(f'{name}_bucket{{le="1"}} 5\n{name}_bucket{{le="+Inf"}} 10\n')
    assert histogram_delta(first, last, name) == [(1.0, 5.0), (float("inf"), 10.0)]


def test_percentiles_of_buckets() -> None:
    buckets = [(1.0, 50.0), (2.0, 100.0), (float("inf"), 100.0)]
    assert bucket_percentile(buckets, 50) == pytest.approx(1.0)
    assert bucket_percentile(buckets, 75) == pytest.approx(1.5)
    assert bucket_percentile([(1.0, 0.0), (float("inf"), 10.0)], 50) == 1.0
    assert bucket_percentile([], 50) == 0


def test_metrics_that_are_none() -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_metrics('vllm:kv_cache_usage_perc{le="1" 5\n')


# -- display


def test_the_live_display_shows_what_happened() -> None:
    records = Records()
    records.add(record(0, 0.1), array("f", [0.01]))
    records.add(record(0, 0.1, Outcome.RATE_LIMITED), array("f"))
    figures = Figures()
    assert figures.line() == "starting"
    figures.take(
        records,
        Progress(
            at=1.5, in_flight=7, backlog=3, sent=9, tokens=4, cpu_seconds=0.1, loop_lags=b"", records={}
        ),
    )
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(render(figures))
    shown = console.export_text()
    assert figures.token_rate == pytest.approx(4 / 1.5)
    for part in ("in flight 7", "waiting 3", "rate limited 1", "time to first token", "ok 1", "req/s █"):
        assert part in shown
    assert "waiting 3" in figures.line()
    assert "failed 1" in figures.line()


def test_the_clock_says_how_long_it_will_take() -> None:
    figures = Figures(planned=60)
    for at, shown in ((7, "7 of 60 s"), (61, "61 s, awaiting the last")):
        figures.take(
            Records(),
            Progress(
                at=at, in_flight=0, backlog=0, sent=0, tokens=0, cpu_seconds=0, loop_lags=b"", records={}
            ),
        )
        assert figures.clock == shown


def test_sparkline() -> None:
    assert sparkline([0, 5, 10]) == "▁▅█"
    assert sparkline([]) == sparkline([0, 0]) == ""


def test_plots() -> None:
    assert line_plot([], x_label="", y_label="", title="") == ""
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(1, 1) == [1]
    assert len(ticks(0.001, 0.0123)) <= 7
