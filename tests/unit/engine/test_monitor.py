"""The verdict on progress, on its own."""

import pytest

from daemons.engine.monitor import Hung, Judge
from daemons.engine.vitals import Vitals, parse_vitals


def vitals(tokens: float = 0, kv_use: float = 0.1, running: float = 1, waiting: float = 0) -> Vitals:
    return Vitals((tokens,), tokens, (kv_use,), running, waiting)


def test_three_looks_at_nothing_moving_are_a_hang() -> None:
    judge = Judge(3)
    judge.look(vitals(5), 1, False)
    judge.look(vitals(5), 1, False)
    judge.look(vitals(5), 1, False)
    with pytest.raises(Hung, match="1 running, 0 waiting, 5 tokens generated; 1 in flight"):
        judge.look(vitals(5), 1, False)


def test_idleness_is_no_hang() -> None:
    judge = Judge(3)
    assert not any(judge.look(vitals(running=0), 0, False) for _ in range(100))


def test_a_long_prefill_moves_only_the_kv_use() -> None:
    judge = Judge(3)
    for step in range(100):
        assert judge.look(vitals(tokens=5, kv_use=step / 100), 1, False)


def test_a_saturated_engine_whose_queue_moves_is_no_hang() -> None:
    judge = Judge(3)
    for step in range(100):
        judge.look(vitals(tokens=step, running=256, waiting=1000), 1256, False)


def test_a_wedge_that_says_it_runs_nothing_is_seen_by_the_gateway() -> None:
    judge = Judge(2)
    judge.look(vitals(running=0), 3, False)
    judge.look(vitals(running=0), 3, False)
    with pytest.raises(Hung, match="0 running"):
        judge.look(vitals(running=0), 3, False)


def test_an_unanswered_probe_is_work() -> None:
    judge = Judge(2)
    judge.look(vitals(running=0), 0, False)
    judge.look(vitals(running=0), 0, True)
    with pytest.raises(Hung, match="a probe unanswered"):
        judge.look(vitals(running=0), 0, True)


def test_silence_is_no_progress_and_one_answer_forgives_it() -> None:
    judge = Judge(3)
    for _ in range(10):
        judge.look(None, 0, False)
        judge.look(None, 0, False)
        judge.look(vitals(running=0, tokens=judge.misses), 0, False)
    judge.look(None, 0, False)
    judge.look(None, 0, False)
    with pytest.raises(Hung, match="does not even tell"):
        judge.look(None, 0, False)


@pytest.mark.parametrize("kv", ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"])
def test_vitals_of_old_and_new_releases(kv: str) -> None:
    text = (
        "# HELP vllm:generation_tokens_total x\n"
        'vllm:generation_tokens_total{engine="0",model_name="a} b"} 12.0\n'.replace("a} b", "ab")
        + 'vllm:generation_tokens_total{engine="1",model_name="ab"} 3.0\n'
        'vllm:prompt_tokens_total{model_name="ab"} 2e1\n'
        f'{kv}{{model_name="ab"}} 0.5\n'
        'vllm:num_requests_running{model_name="ab"} 2.0\n'
        'vllm:num_requests_waiting{model_name="ab"} 1.0\n'
        'vllm:num_requests_waiting_by_reason{reason="x"} 9.0\n'
    )
    assert parse_vitals(text) == Vitals((20.0, 15.0), 15.0, (0.5,), 2.0, 1.0)
