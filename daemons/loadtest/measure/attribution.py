"""Says where the tail comes from: the stage of a request's way that makes slow slower than usual.

Each stage has a distribution over the window, from the generator's records or from scraped histograms. What
makes slow requests slow is a stage whose P99 lies far above its P50, so each stage's share is its distance
between the two over the sum of all such distances. Of a histogram only the mean is exact; where both lie in
one bucket, their distance is not known.
"""

from collections.abc import Mapping, Sequence

from daemons.loadtest.client.records import Outcome, Records
from daemons.loadtest.measure.results import NEGLIGIBLE, Attribution, Cause, Latency
from daemons.loadtest.measure.scrape import (
    Labels,
    Snapshot,
    bucket_percentile,
    histogram_delta,
    percentile_bucket,
)
from daemons.loadtest.measure.statistics import percentile
from daemons.runtime.cli import counted

STAGES = {
    "gateway queue": ("gateway", "llm_gateway_queue_seconds"),
    "gateway overhead": ("gateway", "llm_gateway_overhead_seconds"),
    "engine queue": ("engine", "vllm:request_queue_time_seconds"),
    "prefill": ("engine", "vllm:request_prefill_time_seconds"),
    "decode": ("engine", "vllm:request_decode_time_seconds"),
}
"""Stages that are scraped, with the kind of source and the histogram (names of vLLM 0.6.6 to 0.32)."""

GAUGES = {
    "gateway queue depth": ("llm_gateway_queue_depth",),
    "engine running": ("vllm:num_requests_running",),
    "engine waiting": ("vllm:num_requests_waiting",),
    "KV cache use": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
}
_HARMLESS = ("gpu_idle", "application_clocks", "sync_boost", "display_clocks")
_LIMITING = ("power", "thermal", "board_limit", "reliability")
_EVEN = 1.5
"""P99 over P50 of the time per output token up to which the pace is even."""


def attribute(
    snapshots: Sequence[Snapshot],
    problems: Mapping[str, str],
    records: Records,
    window: tuple[float, float],
    pace: Latency | None = None,
) -> Attribution | None:
    """The attribution over `window` (seconds since the start); None when nothing was scraped or tried.

    `pace` is the time per output token: where it is even, decode is long because answers are.
    """
    if not snapshots and not problems:
        return None
    by_source = _around(snapshots, window)
    causes = [_client_wait(records, window)]
    for stage, (kind, name) in STAGES.items():
        cause = _scraped(stage, kind, name, by_source)
        if cause is not None:
            causes.append(cause)
    spread = sum(cause.p99 - cause.p50 for cause in causes)
    for cause in causes:
        cause.share = (cause.p99 - cause.p50) / spread if spread > NEGLIGIBLE else 0.0
    return Attribution(
        sources=sorted({f"{s.source.kind}={s.source.url}" for s in snapshots}),
        problems=sorted(problems.values()),
        causes=[cause for cause in causes if cause.count],
        notes=_of_length(causes, pace) + _notes(snapshots, by_source, window),
        series=_gauges(snapshots),
    )


def _of_length(causes: Sequence[Cause], pace: Latency | None) -> list[str]:
    largest = max(causes, key=lambda cause: cause.share)
    if pace is None or largest.stage != "decode" or pace.p99 > _EVEN * pace.p50:
        return []
    ends = f"P50 {pace.p50 * 1e3:.1f} ms, P99 {pace.p99 * 1e3:.1f} ms"
    return [f"decode is long where answers are long: the time per output token differs little ({ends})"]


def _around(snapshots: Sequence[Snapshot], window: tuple[float, float]) -> list[tuple[Snapshot, Snapshot]]:
    """For each source the last scrape before the window (else the first of all), and the last of all.

    Requests of the window end after it, and an engine counts them at their end: hence the last of all.
    """
    pairs = []
    for source in {s.source.url for s in snapshots}:
        own = sorted((s for s in snapshots if s.source.url == source), key=lambda s: s.at)
        before = [s for s in own if s.at <= window[0]] or own[:1]
        if len(own) > 1:
            pairs.append((before[-1], own[-1]))
    return pairs


def _client_wait(records: Records, window: tuple[float, float]) -> Cause:
    columns = records.columns
    rows = zip(columns["intended"], columns["due"], columns["outcome"], strict=True)
    waits = sorted(
        due - intended
        for intended, due, outcome in rows
        if window[0] <= intended <= window[1] and outcome == Outcome.OK
    )
    return Cause(
        stage="waiting for a free client",
        p50=percentile(waits, 50),
        p99=percentile(waits, 99),
        share=0.0,
        count=len(waits),
        mean=sum(waits) / len(waits) if waits else None,
    )


def _scraped(
    stage: str, kind: str, name: str, by_source: Sequence[tuple[Snapshot, Snapshot]]
) -> Cause | None:
    buckets: dict[float, float] = {}
    total = 0.0
    for first, last in by_source:
        if first.source.kind == kind:
            counted_up, of_source = histogram_delta(first.values, last.values, name)
            total += of_source
            for bound, count in counted_up:
                buckets[bound] = buckets.get(bound, 0.0) + count
    ordered = sorted(buckets.items())
    if not ordered or not ordered[-1][1]:
        return None
    p50, p99 = bucket_percentile(ordered, 50), bucket_percentile(ordered, 99)
    between = (percentile_bucket(ordered, 50), percentile_bucket(ordered, 99))
    return Cause(
        stage=stage,
        p50=p50,
        # In one bucket the histogram shows no distance between them.
        p99=p50 if between[0] == between[1] else p99,
        share=0.0,
        count=int(ordered[-1][1]),
        mean=total / ordered[-1][1],
        between=between,
    )


def _increase(
    by_source: Sequence[tuple[Snapshot, Snapshot]], name: str, label: tuple[str, str] | None = None
) -> float:
    total = 0.0
    for first, last in by_source:
        for key, value in last.values.items():
            if key[0] == name and (label is None or label in key[1]):
                before = first.values.get(key, 0.0)
                total += value - before if value >= before else value
    return total


def _notes(
    snapshots: Sequence[Snapshot],
    by_source: Sequence[tuple[Snapshot, Snapshot]],
    window: tuple[float, float],
) -> list[str]:
    notes = []
    preempted = _increase(by_source, "vllm:num_preemptions_total")
    if preempted:
        notes.append(
            f"{preempted:.0f} preemptions: the KV cache was too small for what ran, so part of prefill and "
            "decode is work done twice"
        )
    inside = [s for s in snapshots if window[0] <= s.at <= window[1]]
    for name, what in (
        ("vllm:kv_cache_usage_perc", "KV cache use"),
        ("vllm:gpu_cache_usage_perc", "KV cache use"),
    ):
        seen = [value for s in inside for (sample, _), value in s.values.items() if sample == name]
        if seen and max(seen) > 0.9:
            notes.append(f"{what} reached {max(seen):.0%}")
    queries = _increase(by_source, "vllm:prefix_cache_queries_total")
    if queries:
        hits = _increase(by_source, "vllm:prefix_cache_hits_total")
        notes.append(f"prefix cache: {hits / queries:.0%} of the prompt tokens were hits")
    retries = _increase(by_source, "llm_gateway_retries_total")
    if retries:
        notes.append(f"the gateway sent {counted(round(retries), 'request')} a second time")
    return notes + _throttling(inside, by_source)


def _throttling(inside: Sequence[Snapshot], by_source: Sequence[tuple[Snapshot, Snapshot]]) -> list[str]:
    active: dict[str, int] = {}
    scrapes = sum(1 for s in inside if s.source.kind == "gpu")
    for snapshot in inside:
        for reason in _active_reasons(snapshot.values):
            active[reason] = active.get(reason, 0) + 1
    notes = [
        f"GPU clocks were held down by {reason} in {count} of {scrapes} scrapes"
        for reason, count in sorted(active.items())
    ]
    for policy in _LIMITING:
        limited = _increase(by_source, "gpu_clock_limited_seconds_total", ("policy", policy))
        if limited > 0:
            notes.append(f"GPU clocks were limited for {limited:.1f} s by {policy}")
    return notes


def _active_reasons(values: Mapping[tuple[str, Labels], float]) -> set[str]:
    reasons = set()
    for (sample, labels), value in values.items():
        if sample == "gpu_clock_event_active" and value > 0:
            reason = dict(labels).get("reason", "unknown")
            if reason not in _HARMLESS:
                reasons.add(reason)
    return reasons


def _gauges(snapshots: Sequence[Snapshot]) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for label, names in GAUGES.items():
        points: dict[int, dict[str, float]] = {}
        for snapshot in snapshots:
            for name in names:
                value = snapshot.total(name)
                if value is not None:
                    # Two scrapes of one source may fall into one second; the later one counts.
                    points.setdefault(round(snapshot.at), {})[snapshot.source.url] = value
        if points:
            combine = max if label == "KV cache use" else sum
            series[label] = [(float(at), combine(by_url.values())) for at, by_url in sorted(points.items())]
    return series
