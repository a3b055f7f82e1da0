"""Where the time of the slowest went, from what was scraped."""

from array import array

import pytest

from daemons.loadtest.client.records import Records
from daemons.loadtest.measure.attribution import attribute
from daemons.loadtest.measure.results import Attribution, Latency
from daemons.loadtest.measure.scrape import (
    Kind,
    Snapshot,
    Source,
    bucket_percentile,
    histogram_delta,
    parse_metrics,
)
from daemons.loadtest.report.text import stage_cells
from tests.unit.loadtest.runs import steady

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


COARSE = """\
llm_gateway_overhead_seconds_bucket{{le="0.001"}} {half}
llm_gateway_overhead_seconds_bucket{{le="0.005"}} {all}
llm_gateway_overhead_seconds_bucket{{le="+Inf"}} {all}
llm_gateway_overhead_seconds_sum {overhead}
vllm:request_prefill_time_seconds_bucket{{le="0.3"}} {all}
vllm:request_prefill_time_seconds_bucket{{le="+Inf"}} {all}
vllm:request_prefill_time_seconds_sum {prefill}
vllm:request_decode_time_seconds_bucket{{le="1"}} {half}
vllm:request_decode_time_seconds_bucket{{le="5"}} {half}
vllm:request_decode_time_seconds_bucket{{le="+Inf"}} {all}
vllm:request_decode_time_seconds_sum {decode}
"""


def _coarse(prefill: float) -> Attribution:
    texts = [
        COARSE.format(half=0, all=0, overhead=0, prefill=0, decode=0),
        COARSE.format(half=80, all=100, overhead=0.1, prefill=prefill, decode=200),
    ]
    kinds: list[Kind] = ["gateway", "engine"]
    found = attribute(
        [
            snapshot(kind, at, "".join(line for line in text.splitlines(True) if line.startswith(sign)))
            for at, text in enumerate(texts)
            for kind, sign in zip(kinds, ("llm_gateway", "vllm"), strict=True)
        ],
        {},
        Records(),
        (0, 1),
    )
    assert found is not None
    return found


def test_what_a_bucket_hides_is_no_finding_and_its_bounds_are_shown_as_such() -> None:
    found = _coarse(prefill=8.5)
    assert found.verdict.startswith(
        "to the first token unknown (the buckets of prefill are too wide to tell); "
    )
    assert found.verdict.endswith("end to end 100% decode")
    cells = {cause.stage: stage_cells(cause) for cause in found.causes}
    assert cells == {
        "gateway overhead": ("gateway overhead", "1.00", "≤ 1.00", "1.00 to 5.00", "0%", "100"),
        "prefill": ("prefill", "85.0", "≤ 300.0", "≤ 300.0", "unknown", "100"),
        "decode": ("decode", "2,000", "≤ 1,000", "> 5,000", "100%", "100"),
    }


def test_a_mean_says_that_a_wide_bucket_hides_little() -> None:
    found = _coarse(prefill=0.001)
    assert found.verdict == "to the first token 100% gateway overhead; end to end 100% decode"
    assert {cause.stage: cause.hidden for cause in found.causes}["prefill"] == pytest.approx(0.001)


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
    assert histogram_delta(first, last, name) == ([(1.0, 5.0), (float("inf"), 10.0)], 0.0)


def test_percentiles_of_buckets() -> None:
    buckets = [(1.0, 50.0), (2.0, 100.0), (float("inf"), 100.0)]
    assert bucket_percentile(buckets, 50) == pytest.approx(1.0)
    assert bucket_percentile(buckets, 75) == pytest.approx(1.5)
    assert bucket_percentile([(1.0, 0.0), (float("inf"), 10.0)], 50) == 1.0
    assert bucket_percentile([], 50) == 0


def test_metrics_that_are_none() -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_metrics('vllm:kv_cache_usage_perc{le="1" 5\n')
