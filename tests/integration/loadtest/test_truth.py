"""What the load tester reports is what the mock engine did."""

import random
import time
from pathlib import Path

import pytest

from daemons.loadtest.measure.statistics import percentile
from tests.integration.loadtest.conftest import Run
from tests.support.mock_engine import MockEngine

WHOLE = ("--no-stream", "--output-tokens", "1")
TRIES = 6
"""Runs on a machine that others use as well, until the kernel lets one of them be on time. An error of the
load tester's own shows in every one."""


def test_a_client_that_waits_its_turn_is_not_left_out(run: Run) -> None:
    """500 ms of service, 10 requests/s, one at a time: the eighth waits 2.8 s before it is sent."""
    errors: list[tuple[float, float]] = []
    while not any(whole <= 0.1 and alone <= 0.05 for whole, alone in errors):
        assert len(errors) < TRIES, errors
        with MockEngine(first_us=500_000, token_us=0) as engine:
            load = ("--shape", "constant", "--rate", "10", "--requests", "8", "--concurrency", "1")
            found = run(engine.url, *load, *WHOLE).result.overall.latencies
        errors.append((abs(found["e2e"].p99 - 3.3), abs(found["e2e_from_send"].p99 - 0.5)))


def seen(tallies: list[list[int]]) -> list[float]:
    """What the mock engine counted, in seconds, ascending."""
    return [us / 1e6 for us, count in tallies for _ in range(count)]


def test_percentiles_are_within_one_percent_of_exact(run: Run, tmp_path: Path) -> None:
    rng = random.Random(4)  # noqa: S311 - reproducible, not secret
    services = [int(max(60_000, rng.lognormvariate(11.8, 0.5))) for _ in range(400)]
    file = tmp_path / "services"
    file.write_text("\n".join(map(str, services)))
    errors: list[dict[int, float]] = []
    while not any(max(tried.values()) <= 0.01 for tried in errors):
        assert len(errors) < TRIES, errors
        with MockEngine(services=file) as engine:
            load = ("--rate", "100", "--requests", str(len(services)))
            found = run(engine.url, *load, *WHOLE).result.overall.latencies["e2e_from_send"]
            exact = seen(engine.stats()["totals_us"])
        assert len(exact) == found.count == len(services)
        percents = (50, 90, 95, 99, 100)
        errors.append({p: abs(found.at(p) / percentile(exact, p) - 1) for p in percents})


def test_inter_token_latency_at_256_streams_is_within_half_a_millisecond(run: Run) -> None:
    errors: list[tuple[float, float, float]] = []
    while not any(max(tried) <= 0.0005 for tried in errors):
        assert len(errors) < TRIES, errors
        with MockEngine(first_us=20_000, token_us=50_000) as engine:
            load = (
                "--concurrency",
                "256",
                "--requests",
                "768",
                "--output-tokens",
                "40",
                "--prompt-tokens",
                "20",
            )
            result = run(engine.url, *load).result
            gaps = seen(engine.stats()["gaps_us"])
        found, pace = result.overall.latencies["itl"], result.overall.latencies["tpot"]
        assert found.count == len(gaps) == 768 * 39
        exact = (sum(gaps) / len(gaps), percentile(gaps, 50), 0.05)
        measured = (found.mean, found.p50, pace.p50)
        errors.append(tuple(abs(a - b) for a, b in zip(measured, exact, strict=True)))  # type: ignore[arg-type]


def test_tokens_come_from_usage(run: Run) -> None:
    with MockEngine(first_us=1000, token_us=100) as engine:
        result = run(engine.url, "--concurrency", "4", "--requests", "40", "--output-tokens", "25").result
        served = engine.stats()
    assert result.overall.output_tokens == served["tokens"] == 40 * 25
    assert result.overall.ok == served["served"] == 40
    assert result.overall.latencies["itl"].count == 40 * 24


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("status=429", "rate_limited"),
        ("status=503", "overloaded"),
        ("status=500", "server_error"),
        ("status=404", "client_error"),
        ("status=302", "client_error"),
        ("status=401", "unauthorised"),
        ("cut=3", "cut"),
        ("error=3", "error_event"),
        ("stall=3", "stall"),
        ("reset", "reset"),
        ("garbage", "malformed"),
    ],
)
def test_every_failure_has_its_own_name(run: Run, tmp_path: Path, fault: str, outcome: str) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "mix:\n  - {name: good, output_tokens: 8}\n"
        f"  - {{name: bad, model: 'fault:{fault}', output_tokens: 8}}\n"
        f"timeouts: {{stall: {8 if outcome == 'stall' else 60}}}\n"
    )
    with MockEngine(first_us=1000, token_us=1000, unlisted=True) as engine:
        # Those that stall do so all at once.
        options = ["--model", "bench", "--concurrency", "40", "--requests", "40"]
        done = run(engine.url, "--plan", str(plan), *options)
    good, bad = (g for g in done.result.groups if g.kind == "type")
    assert (good.name, good.failed, good.ok) == ("good", 0, good.requests)
    assert bad.outcomes == {outcome: bad.requests}
    assert bad.requests > 5
    assert outcome.replace("_", " ") in done.text


def test_a_timeout_is_no_stall(run: Run) -> None:
    with MockEngine(first_us=600_000_000) as engine:
        done = run(engine.url, "--concurrency", "2", "--requests", "2", "--timeout", "300ms", *WHOLE)
    assert done.result.overall.outcomes == {"timeout": 2}
    assert done.status == 4


def test_answers_that_take_too_long_while_they_come_are_no_dead_target(run: Run) -> None:
    options = ("--output-tokens", "2000", "--prompt-tokens", "9", "--concurrency", "8", "--duration", "5s")
    with MockEngine(first_us=1000, token_us=50_000) as engine:
        done = run(engine.url, "--timeout", "500ms", *options)
    assert done.result.overall.outcomes == {"timeout": done.result.overall.requests}
    assert (done.result.stopped_by, done.status) == ("complete", 1), "it is slow, not gone"


def test_clients_that_leave_and_clients_that_read_slowly(run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "mix:\n"
        "  - {name: steady, output_tokens: 20}\n"
        "  - {name: leaving, output_tokens: 2000, cancel: {fraction: 1, after_tokens: 5}}\n"
        "  - {name: slow, output_tokens: 20, slow_reader: {fraction: 1, bytes_per_second: 10000}}\n"
    )
    with MockEngine(first_us=1000, token_us=1000) as engine:
        result = run(engine.url, "--plan", str(plan), "--concurrency", "6", "--requests", "60").result
        while (served := engine.stats())["running"]:
            time.sleep(0.05)
    steady, leaving, slow = (g for g in result.groups if g.kind == "type")
    assert leaving.outcomes == {"cancelled": leaving.requests}
    assert served["aborted"] == leaving.requests
    assert (leaving.failed, leaving.error_share) == (0, 0)
    assert slow.ok == slow.requests
    assert slow.latencies == {}, "a slow reader's pace is its own"
    assert steady.latencies["e2e"].count == steady.ok


@pytest.mark.parametrize("endpoint", ["chat", "completions", "embeddings"])
@pytest.mark.parametrize("options", [(), ("--no-stream",)])
def test_endpoints(run: Run, endpoint: str, options: tuple[str, ...]) -> None:
    with MockEngine(first_us=1000, token_us=100) as engine:
        load = ("--concurrency", "2", "--requests", "10", "--output-tokens", "5", "--endpoint", endpoint)
        group = run(engine.url, *load, *options).result.overall
    assert (group.ok, group.without_usage) == (10, 0)
    assert group.output_tokens == (0 if endpoint == "embeddings" else 50)
    streamed = endpoint != "embeddings" and not options
    assert ("ttft" in group.latencies) == streamed


def test_figures_by_key_and_by_step(run: Run, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(f"sk-{name}\n")
    keys = ("--key-file", str(tmp_path / "a"), "--key-file", f"other={tmp_path / 'b'}")
    with MockEngine(first_us=1000, token_us=100) as engine:
        result = run(engine.url, *keys, "--steps", "20:1s,60:1s", "--output-tokens", "4").result
    assert [g.name for g in result.groups if g.kind == "key"] == ["a", "other"]
    steps = [g for g in result.groups if g.kind == "step"]
    assert [g.name for g in steps] == ["1: 20/s", "2: 60/s"]
    assert steps[0].requests + steps[1].requests == result.overall.requests
    assert steps[1].requests > steps[0].requests


TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2024-05-10 00:{m:02d}:00.000000+00:00,{50 + m},{3 + m}\n" for m in range(10)
)


def test_a_trace_keeps_its_times_and_lengths(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(TRACE)
    with MockEngine(first_us=1000, token_us=100) as engine:
        result = run(engine.url, "--trace", str(file), "--speed", "600").result
    assert result.overall.ok == 10
    assert result.overall.output_tokens == sum(3 + m for m in range(10))
    # At its own speed the trace takes nine minutes.
    assert 0.85 <= result.seconds < 540


def test_conversations_go_turn_by_turn(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "share.json"
    turn = '{"from": "human", "value": "Tell me more."}, {"from": "gpt", "value": "There is more to tell."}'
    file.write_text(f'[{{"conversations": [{turn}, {turn}, {turn}]}}, {{"conversations": [{turn}]}}]')
    with MockEngine(first_us=5000, token_us=100) as engine:
        result = run(engine.url, "--trace", str(file), "--rate", "20").result
    types = {g.name: g.requests for g in result.groups if g.kind == "type"}
    assert types == {"first-turn": 2, "later-turns": 2}


def test_the_tail_is_attributed_to_the_queue_that_makes_it(run: Run) -> None:
    with MockEngine(first_us=20_000, token_us=1000, slots=2) as engine:
        load = (
            "--shape",
            "gamma",
            "--burstiness",
            "0.05",
            "--rate",
            "25",
            "--requests",
            "120",
            "--seed",
            "3",
        )
        done = run(engine.url, *load, "--output-tokens", "20", "--metrics", f"engine={engine.url}/metrics")
    attribution = done.result.attribution
    assert attribution is not None
    assert max(attribution.causes, key=lambda c: c.share).stage == "engine queue"
    assert attribution.problems == []
    assert "engine queue" in done.text
    assert {"engine running", "engine waiting", "KV cache use"} <= set(attribution.series)


def test_metrics_that_cannot_be_scraped_are_a_warning(run: Run) -> None:
    with MockEngine(first_us=1000) as engine:
        options = ("--requests", "5", "--metrics", f"gateway={engine.url}/nothing-here", *WHOLE)
        done = run(engine.url, *options)
    assert done.status == 0
    assert "answered 404" in done.text
