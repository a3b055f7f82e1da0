"""``/metrics``: the families of a real vLLM 0.32, and the names of 0.6.6, with the model's numbers."""

import random
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemons.simulator.metrics.exposition import MetricsPage
from daemons.simulator.metrics.releases import release
from daemons.simulator.model.blocks import BlockPool
from daemons.simulator.model.engine import Engine, QueueLimits
from daemons.simulator.model.output import Sampling
from daemons.simulator.model.scheduler import Limits, Scheduler
from daemons.simulator.model.text import answer
from daemons.simulator.model.timing import LinearCost
from daemons.simulator.options import METRIC_RELEASES
from tests.unit.simulator.test_engine import Clock, Recorder, advance, run

# From a vLLM 0.32.0 with --max-model-len 1024: without values, and without those of cache_config_info.
REAL = Path(__file__).with_name("vllm-0.32.series.txt").read_text(encoding="utf-8").splitlines()
CONFIG = {
    "block_size": "4",
    "enable_prefix_caching": "True",
    "gpu_memory_utilization": "0.9",
    "kv_cache_max_concurrency": "1",
    "kv_cache_memory_bytes": "None",
    "kv_cache_size_tokens": "256",
    "num_gpu_blocks": "64",
    "num_gpu_blocks_override": "None",
    "user_specified_block_size": "False",
}


def engine_and_page(name: str) -> tuple[Engine, MetricsPage]:
    scheduler = Scheduler(Limits(4, 16, 4), BlockPool(64))
    cost = LinearCost(0.02, 0.0, 1000.0, 0.0, random.Random(0))  # noqa: S311 - jitter
    engine = Engine(scheduler, cost, QueueLimits(requests=1))
    page = MetricsPage(release(name, 1024), engine, {"model_name": "m"}, CONFIG, lambda: 1.5e9)
    return engine, page


def submit(engine: Engine, clock: Clock, tokens: int) -> None:
    sampling = Sampling(tokens, ignore_eos=True)
    engine.submit([1, 2, 3, 4, 5, 6], [answer(0, 50)], sampling, Recorder(clock), now=clock.now)


def series(page: MetricsPage) -> list[str]:
    found = []
    for line in page.render().decode().splitlines():
        if line.startswith("vllm:cache_config_info"):
            found.append("vllm:cache_config_info{" + ",".join(sorted(re.findall(r'(\w+)="', line))) + "}")
        elif line.startswith("vllm:"):
            found.append(line.rsplit(" ", 1)[0])
        elif line.startswith("# ") and "vllm:" in line:
            found.append(line)
    return found


def values(page: MetricsPage) -> dict[str, float]:
    return {
        sample.name
        + "".join(
            sample.labels[key] for key in sorted(sample.labels.keys() - {"engine", "model_name"})
        ): sample.value
        for family in text_string_to_metric_families(page.render().decode())
        for sample in family.samples
    }


def test_the_page_is_that_of_a_real_server_but_for_its_numbers() -> None:
    assert series(engine_and_page("0.32")[1]) == REAL


def test_the_numbers_are_the_models() -> None:
    engine, page = engine_and_page("0.32")
    clock = Clock()
    submit(engine, clock, 10)
    waiting = values(page)
    assert (waiting["vllm:num_requests_waiting"], waiting["vllm:num_requests_running"]) == (1.0, 0.0)
    assert waiting["vllm:num_requests_waiting_by_reasoncapacity"] == 1.0
    advance(engine, clock)
    running = values(page)
    assert (running["vllm:num_requests_waiting"], running["vllm:num_requests_running"]) == (0.0, 1.0)
    assert running["vllm:kv_cache_usage_perc"] == pytest.approx(2 / 64)
    assert running["vllm:generation_tokens_total"] == 1.0
    assert running["vllm:prompt_tokens_total"] == 6.0
    run(engine, clock)
    submit(engine, clock, 3)
    run(engine, clock)
    done = values(page)
    assert done["vllm:kv_cache_usage_perc"] == 0.0
    assert done["vllm:generation_tokens_total"] == 13.0
    assert done["vllm:request_success_totallength"] == 2.0
    assert done["vllm:request_success_totalabort"] == 0.0
    assert done["vllm:prompt_tokens_by_source_totallocal_cache_hit"] == 4.0
    assert done["vllm:prefix_cache_hits_total"] == 4.0
    assert done["vllm:time_to_first_token_seconds_count"] == 2.0
    assert done["vllm:inter_token_latency_seconds_count"] == 11.0
    assert done["vllm:inter_token_latency_seconds_sum"] == pytest.approx(11 * 0.02)
    assert done["vllm:e2e_request_latency_seconds_bucket+Inf"] == 2.0


def test_old_names_carry_the_same_numbers() -> None:
    engine, page = engine_and_page("0.6.6")
    clock = Clock()
    submit(engine, clock, 10)
    advance(engine, clock)
    running = values(page)
    assert running["vllm:gpu_cache_usage_perc"] == pytest.approx(2 / 64)
    assert running["vllm:num_requests_swapped"] == 0.0
    assert "vllm:kv_cache_usage_perc" not in running
    run(engine, clock)
    done = values(page)
    assert done["vllm:time_per_output_token_seconds_count"] == 9.0
    assert done["vllm:request_success_totallength"] == 1.0
    assert not any(name.endswith("_created") for name in done if name.startswith("vllm:"))
    assert "engine=" not in page.render().decode()


@pytest.mark.parametrize("name", METRIC_RELEASES)
def test_every_page_is_well_formed(name: str) -> None:
    _, page = engine_and_page(name)
    page.http.count("/v1/models", "GET", 200, (0, 10), 0.1)
    families = list(text_string_to_metric_families(page.render().decode()))
    assert {"process_cpu_seconds", "http_requests"} <= {family.name for family in families}
    for family in families:
        counts = [s.value for s in family.samples if s.name.endswith("_bucket") and s.labels["le"] == "+Inf"]
        totals = [s.value for s in family.samples if s.name.endswith("_count")]
        assert not counts or counts == totals
