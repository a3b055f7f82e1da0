"""Plans, arrival times, traces and prompts."""

import contextlib
import io
import json
import random
import statistics
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from daemons.loadtest.load.arrivals import arrivals, gamma, poisson, ramp, steps
from daemons.loadtest.load.plan import Closed, Constant, Key, Length, Plan, Poisson, PromptType, Steps, Trace
from daemons.loadtest.load.prompts import Prompts
from daemons.loadtest.load.sessions import Request, workload
from daemons.loadtest.load.traces import parse_trace, read_trace
from daemons.runtime import settings
from daemons.runtime.errors import Fatal

BURST = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,230,1317,API log
118,ChatGPT,417,0,417,API log
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
AZURE24 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01.009930+00:00,2399,6
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 3000, "input_length": 1030, "output_length": 26, "hash_ids": [46, 47, 99]}
"""
SHARE = json.dumps(
    [
        {"id": "a", "conversations": [
            {"from": "human", "value": "Hi \"there\"\n"}, {"from": "gpt", "value": "Hello, how are you?"},
            {"from": "human", "value": "Well."}, {"from": "gpt", "value": "Good."}]},
        {"id": "b", "conversations": [{"from": "gpt", "value": "orphan"}]},
    ]
)  # fmt: skip


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - reproducible, not secret


def seconds(times: Iterator[float], count: int) -> list[float]:
    found = list(islice(times, count))
    assert found == sorted(found)
    return found


def test_constant_arrivals_keep_their_schedule() -> None:
    plan = Plan(load=Constant(rate=10), requests=4)
    assert list(arrivals(plan, seeded(0))) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert len(list(arrivals(Plan(load=Constant(rate=10), duration=2), seeded(0)))) == 20


def test_poisson_and_gamma_have_their_rate_and_spread() -> None:
    for times, spread in (
        (poisson(50, seeded(1)), 1.0),
        (gamma(50, 0.25, seeded(1)), 2.0),
        (gamma(50, 4.0, seeded(1)), 0.5),
    ):
        found = seconds(times, 20_000)
        gaps = [b - a for a, b in pairwise(found)]
        mean = statistics.fmean(gaps)
        assert mean == pytest.approx(1 / 50, rel=0.05)
        assert statistics.stdev(gaps) / mean == pytest.approx(spread, rel=0.05)


def test_a_ramp_gets_faster_as_it_says() -> None:
    found = [at for at in seconds(ramp(0, 100, 100, seeded(2)), 6000) if at < 100]
    assert len(found) == pytest.approx(5000, rel=0.05)
    assert sum(at < 50 for at in found) == pytest.approx(1250, rel=0.1)


def test_steps_follow_each_other() -> None:
    found = list(steps([(10, 100), (50, 100)], seeded(3)))
    assert sum(at < 100 for at in found) == pytest.approx(1000, rel=0.12)
    assert sum(100 <= at < 200 for at in found) == pytest.approx(5000, rel=0.05)


@pytest.mark.parametrize(
    ("text", "name", "ats", "prompt", "skipped"),
    [
        (BURST, "burstgpt", [0, 40.5], 472, 1),
        (AZURE, "azure", [0, 4.314579], 374, 0),
        (AZURE24, "azure", [0, 1], 2162, 0),
        (MOONCAKE, "mooncake", [0, 3], 1100, 0),
    ],
)
def test_traces_are_recognised_and_read(
    text: str, name: str, ats: list[float], prompt: int, skipped: int
) -> None:
    found = parse_trace(io.StringIO(text), "auto", 100)
    assert (found.format, found.skipped, found.rows[0].prompt_tokens) == (name, skipped, prompt)
    assert [row.at for row in found.rows] == pytest.approx(ats, abs=1e-5)
    assert len(parse_trace(io.StringIO(text), "auto", 1).rows) == 1


def test_sharegpt_conversations() -> None:
    found = parse_trace(io.StringIO(SHARE), "auto", 100)
    assert found.skipped == 1
    assert found.conversations[0].turns[1] == ("Well.", "Good.")
    lines = "\n".join(json.dumps(entry) for entry in json.loads(SHARE))
    assert parse_trace(io.StringIO(lines), "auto", 100).conversations == found.conversations


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a BurstGPT"),
        ("a,b\n1,2\n", "not a BurstGPT"),
        (BURST.replace("472", "many"), "line 2"),
        (AZURE.replace("2023-11-16 18:15:50", "noon"), "line 3"),
        (MOONCAKE.replace("3000", '"x"'), "line 2"),
        ("[1, 2", "not JSON"),
        ("[1, 2]", "no conversation"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
    ],
)
def test_broken_traces_are_named_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(Fatal, match=said) as failure:
        read_trace(file, "auto", 10)
    assert failure.value.exit_code == 78


def test_a_missing_trace(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="does not exist"):
        read_trace(tmp_path / "none", "auto", 10)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BURST.replace("45.5", "nan"), "line 3"),
        (BURST.replace("1087", "1e12"), "line 3"),
        (MOONCAKE.replace("1030", "1000000000000"), "line 2"),
        (MOONCAKE.replace('"hash_ids": [46, 47, 99]', '"hash_ids": 4'), "line 2"),
    ],
)
def test_values_that_cannot_be_are_named_with_their_line(text: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        parse_trace(io.StringIO(text), "auto", 10)


def test_no_more_of_a_trace_is_read_than_is_needed() -> None:
    file = io.StringIO(BURST + "99,ChatGPT,1,1,2,API log\n" * 10_000)
    assert len(parse_trace(file, "auto", 5).rows) == 5
    assert file.tell() < 1000


def test_a_duration_ends_a_trace_and_steps_early(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text(AZURE)
    for duration, count in ((None, 2), (4, 1)):
        work = workload(Plan(load=Trace(file=file), duration=duration), "m", "n")
        assert work.starts is not None
        assert len(list(work.starts)) == count
    load = Steps.model_validate({"steps": [{"rate": 50, "seconds": 10}, {"rate": 50, "seconds": 10}]})
    assert max(arrivals(Plan(load=load), seeded(1))) > 19
    assert max(arrivals(Plan(load=load, duration=5), seeded(1))) < 5
    assert Plan(load=load, duration=5).sending_seconds == 5


def test_what_a_trace_could_not_replay_is_said(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text(BURST)
    assert "1 entries of the trace were left out" in workload(Plan(load=Trace(file=file)), "m", "n").notes[0]


@given(st.text(max_size=300), st.sampled_from(["auto", "burstgpt", "azure", "mooncake", "sharegpt"]))
def test_noise_breaks_nothing(text: str, name: str) -> None:
    with contextlib.suppress(ValueError):
        parse_trace(io.StringIO(text), name, 10)  # type: ignore[arg-type]


def test_prompts_have_their_length_and_never_repeat() -> None:
    prompts = Prompts(1, "n")
    texts = [prompts.unique(100) for _ in range(200)]
    assert len(set(texts)) == 200
    assert {len(text.split()) for text in texts} == {93}
    assert Prompts(1, "other").unique(100) != Prompts(1, "n").unique(100)
    assert len(Prompts(1, "n").unique(100_000).split()) > 99_000


def test_prefixes_are_shared_within_a_group_only() -> None:
    prompts = Prompts(1, "n")
    a, b = prompts.with_prefix(200, 150, "x"), prompts.with_prefix(200, 150, "x")
    other = prompts.with_prefix(200, 150, "y")
    assert a.split()[:140] == b.split()[:140]
    assert a != b
    assert a.split()[:100] != other.split()[:100]


def requests_of(plan: Plan, count: int) -> list[Request]:
    return [request for session in islice(workload(plan, "m", "n").sessions, count) for request in session]


def test_mooncake_blocks_share_what_they_name(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(MOONCAKE)
    bodies = [json.loads(r.body) for r in requests_of(Plan(load=Trace(file=file)), 10)]
    a, b = (body["messages"][0]["content"].split() for body in bodies)
    assert a[:1000] == b[:1000]
    assert a[1020:] != b[1020:]
    assert [body["max_tokens"] for body in bodies] == [52, 26]


def test_conversations_carry_the_recorded_answers(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    file.write_text(SHARE)
    work = workload(Plan(load=Trace(file=file, rate=5)), "m", "n")
    first, second = (json.loads(r.body)["messages"] for r in next(work.sessions))
    assert first[1:] == [{"role": "user", "content": 'Hi "there"\n'}]
    assert [m["content"] for m in second[1:]] == ['Hi "there"\n', "Hello, how are you?", "Well."]
    assert second[0] == first[0]


def test_the_same_seed_sends_the_same_load() -> None:
    plan = Plan(seed=7)
    assert requests_of(plan, 50) == requests_of(plan, 50)
    assert requests_of(plan, 50) != requests_of(Plan(seed=8), 50)


def test_a_mix_keeps_its_weights_keys_and_parts() -> None:
    plan = Plan(
        mix=(
            PromptType(name="a", weight=3, cancel={"fraction": 0.5}),
            PromptType(name="b", endpoint="embeddings", prompt_tokens="10..20"),
        ),
        keys=(Key(name="x", file=Path("x")), Key(name="y", file=Path("y"), weight=4)),
    )
    found = requests_of(plan, 4000)
    assert sum(r.type == 0 for r in found) == pytest.approx(3000, rel=0.05)
    assert sum(r.key == 1 for r in found) == pytest.approx(3200, rel=0.05)
    assert sum(r.cancel_after > 0 for r in found) == pytest.approx(1500, rel=0.1)
    embedding = next(r for r in found if r.type == 1)
    assert (embedding.path, embedding.stream) == ("/v1/embeddings", False)
    assert "stream" not in json.loads(embedding.body)


def test_short_forms_of_lengths() -> None:
    assert Length.model_validate(5).mean == 5
    spread = Length.model_validate("10..20")
    assert (spread.min, spread.max, spread.uniform) == (10, 20, True)


@pytest.mark.parametrize(
    "plan",
    [
        {"load": {"shape": "sideways"}},
        {"load": {"shape": "poisson"}},
        {"mix": [{"name": "a"}, {"name": "a"}]},
        {"mix": []},
        {"mix": [{"name": "a", "prompt_tokens": "20..10"}]},
        {"mix": [{"name": "a", "prompt_tokens": "many"}]},
        {"objectives": ["nobody: ttft < 1s"]},
        {"objectives": ["ttft"]},
        {"target": "http://elsewhere"},
        {"load": {"shape": "poisson", "rate": float("inf")}},
        {"mix": [{"name": "a", "stream": False, "cancel": {"fraction": 1}}]},
        {"budget": {"requests": -1}},
        {"warmup": 60},
        {"warmup": 5, "load": {"shape": "steps", "steps": [{"rate": 1, "seconds": 5}]}},
    ],
)
def test_plans_that_make_no_sense(plan: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Plan.model_validate(plan)


def test_only_some_loads_are_steady_by_design() -> None:
    assert Plan(load=Closed()).stationary
    assert Plan(load=Poisson(rate=1)).stationary
    assert not Plan(load=Trace(file=Path("x"))).stationary


def test_the_plan_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = Path("docs/loadtest.md").read_text()
    file = tmp_path / "plan.yaml"
    file.write_text(text.split("```yaml\n")[1].split("```")[0])
    plan = settings.load(file, Plan)
    assert [kind.name for kind in plan.mix] == ["chat", "rag", "embed", "leaving", "slow"]
    assert len(plan.objectives) == 4
