"""How many series a large host has, and what evaluating every rule on them costs."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from observability.prometheus.client import Prometheus
from observability.prometheus.local import config
from tests.integration.engine.conftest import wait_for
from tests.integration.observability import large
from tests.integration.observability.lab import HOST, answers, hasty_rules, missing, watching
from tests.support.ports import free_port

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {missing()}: apt-get install {missing()}")

MOST_SERIES = 30_000
MOST_SECONDS = 0.1
EVALUATIONS = 10
DURATIONS = "min_over_time((prometheus_rule_group_last_duration_seconds > 0)[2m:1s])"
"""Of each group what its fastest evaluation took: the machine that runs the tests does more than that."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the pages of a large host, every second."""
    folder = tmp_path_factory.mktemp("large")
    texts = {page.path: page.text for page in large.pages()}
    with ExitStack() as stack:
        jobs = large.targets(stack.enter_context(large.serving(texts.__getitem__)), HOST)
        port = free_port()
        jobs["prometheus"] = [(f"127.0.0.1:{port}", {"host": HOST})]
        settings = config(jobs, hasty_rules(folder), "1s")
        made, _ = stack.enter_context(watching(folder, settings, port))
        wait_for(lambda: answers(made, sum(map(len, jobs.values()))), 60)
        wait_for(lambda: made.instant("slo:sli_events:rate3d", time.time()), 120, 0.5)
        least = "min(prometheus_rule_group_iterations_total)"
        wait_for(lambda: _value(made, least) >= EVALUATIONS, 120, 0.5)
        yield made


def _value(prometheus: Prometheus, expr: str) -> float:
    (one,) = prometheus.instant(expr, time.time())
    return one.points[-1][1]


def test_a_large_host_has_fewer_series_than_promised(prometheus: Prometheus) -> None:
    series = _value(prometheus, 'sum(scrape_samples_post_metric_relabeling{job!="prometheus"})')
    head = _value(prometheus, "prometheus_tsdb_head_series")
    print(f"series of the host's targets {series:.0f}, of Prometheus in all {head:.0f}")
    assert series > 10_000
    assert head < MOST_SERIES


def test_every_rule_is_evaluated_in_time(prometheus: Prometheus) -> None:
    found = prometheus.instant(DURATIONS, time.time())
    seconds = {one.labels["rule_group"].partition(";")[2]: one.points[-1][1] for one in found}
    print({name: f"{value * 1000:.1f} ms" for name, value in seconds.items()})
    assert len(seconds) >= 7
    assert sum(seconds.values()) < MOST_SECONDS
