"""What evaluating the rules costs once a large host's 30 days are there."""

import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.samples import Sample

from observability.prometheus.client import Points, Prometheus
from observability.prometheus.local import config
from observability.prometheus.render import RULES
from tests.integration.engine.conftest import wait_for
from tests.integration.observability import history, large
from tests.integration.observability.lab import HOST, answers, missing, watching
from tests.support.ports import free_port

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {missing()}: apt-get install {missing()}")

MOST_SAMPLES = 250_000
MOST_SECONDS = 0.1
DURATION = "(prometheus_rule_group_last_duration_seconds > 0)"
END = 1_700_006_400.0
SCRAPES = 120
"""For how many scrapes the targets have something to tell while Prometheus looks."""

DAYS = 30
MODELS = [f"model-{number}" for number in range(large.ENGINES)]
OBJECTIVES = ("availability", "time_to_first_token", "inter_token")
GROUPS: list[dict[str, Any]] = [
    group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]
]
READ = set(
    re.findall(r"[a-z]\w*(?::\w+)*", " ".join(rule["expr"] for group in GROUPS for rule in group["rules"]))
)
"""Every word of the rules, and so every metric that they read."""

FAR, NEAR = 6 * 3600, 4500
"""How far back rules look at file systems, and at whatever else daemons tell, in seconds."""

KEPT = {
    "slo:sli_events:rate5m": (60, FAR, 5.0),
    "slo:sli_errors:rate5m": (60, FAR, 0.01),
    "slo:sli_events:sum30m": (1800, DAYS * 86400, 9000.0),
    "slo:sli_errors:sum30m": (1800, DAYS * 86400, 18.0),
}
"""Records that others are made of: seconds between their points, how far they go back, the largest value."""


def told(end: float, address: str, more: int = 0) -> Iterator[tuple[str, history.Course, Points]]:
    """What targets told that rules read, up to `end` and for `more` scrapes after it; with their paths."""
    for page in large.pages():
        for seconds, wanted in (NEAR, _read_near), (FAR, _read_far):
            scrapes = seconds // history.SCRAPE_SECONDS + more
            moments = [end - seconds + number * history.SCRAPE_SECONDS for number in range(scrapes)]
            for course in history.courses(page, address, HOST, scrapes, wanted):
                yield page.path, course, list(zip(moments, course.values, strict=True))


def _read_near(sample: Sample) -> bool:
    return sample.name in READ and not _read_far(sample)


def _read_far(sample: Sample) -> bool:
    return sample.name in READ and sample.name.startswith("node_filesystem")


def objectives(end: float) -> Iterator[tuple[str, Points]]:
    """What was recorded of objectives: half hours over 30 days, minutes over six hours."""
    chance = random.Random(30)  # noqa: S311 - readings, no secrets
    for record, (step, seconds, most) in KEPT.items():
        for model in MODELS:
            for slo in OBJECTIVES:
                points = [(end - ago, most * chance.random()) for ago in range(seconds, -1, -step)]
                yield history.series(record, {"model": model, "slo": slo}), points


@dataclass(frozen=True, slots=True)
class Cost:
    """What one evaluation of a group of rules takes."""

    samples: int
    cpu_seconds: float


def cost(prometheus: Prometheus, process: int, group: dict[str, Any], at: float, times: int) -> Cost:
    """What evaluating `group` at the time `at` takes, the mean of a number of `times`."""
    samples = 0
    before = _cpu_seconds(process)
    for _ in range(times):
        for rule in group["rules"]:
            answer = prometheus.get("query", query=rule["expr"], time=at, stats="all")
            samples += answer["stats"]["samples"]["totalQueryableSamples"]
    return Cost(samples // times, (_cpu_seconds(process) - before) / times)


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def recorded(prometheus: Prometheus, prefix: str, at: float) -> Iterator[tuple[str, Points]]:
    """What the rules whose records begin with `prefix` would have recorded for some minutes up to `at`."""
    for group in GROUPS:
        for rule in group["rules"]:
            if rule.get("record", "").startswith(prefix) and rule["record"] not in KEPT:
                for one in prometheus.instant(rule["expr"], at):
                    labels = {key: value for key, value in one.labels.items() if key != "__name__"}
                    name = history.series(rule["record"], labels | rule.get("labels", {}))
                    yield (
                        name,
                        [(at - ago, one.points[-1][1]) for ago in range(NEAR, -1, -history.SCRAPE_SECONDS)],
                    )


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[tuple[Prometheus, int]]:
    """A Prometheus that has 30 days up to `END` behind it and does nothing, and its process."""
    told_so_far = told(END, "127.0.0.1:9100")
    history.add(((course.stored(), points) for _, course, points in told_so_far), tmp_path)
    history.add(objectives(END), tmp_path)
    for prefix in ("llm:", "slo:"):
        with history.idle(tmp_path) as (prometheus, _):
            found = list(recorded(prometheus, prefix, END))
        history.add(found, tmp_path)
    with history.idle(tmp_path) as running:
        yield running


def test_thirty_days_are_read_in_few_samples(idle: tuple[Prometheus, int]) -> None:
    costs = {group["name"]: cost(*idle, group, END, 10) for group in GROUPS}
    for name, one in costs.items():
        print(f"{name:16} {one.samples:7} samples {one.cpu_seconds * 1000:5.1f} ms of CPU")
    print(f"{'all':16} {sum(one.samples for one in costs.values()):7} samples")
    assert min(one.samples for one in costs.values()) > 0
    assert sum(one.samples for one in costs.values()) < MOST_SAMPLES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_group_is_evaluated_in_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the rules' own intervals; only half hours are not waited for."""
    rules, port, start = tmp_path / "rules", free_port(), int(time.time())
    rules.mkdir()
    for path in RULES.glob("*.yml"):
        (rules / path.name).write_text(path.read_text().replace("interval: 30m", "interval: 4m"))
    live: dict[str, list[history.Course]] = {}

    def text_of(path: str) -> str:
        ago = int(time.time() - start) // history.SCRAPE_SECONDS - SCRAPES
        return "".join(f"{history.series(one.name, one.labels)} {one.values[ago]}\n" for one in live[path])

    with large.serving(text_of) as address:
        lines = []
        for where, course, points in told(start, address, SCRAPES):
            live.setdefault(where, []).append(course)
            lines.append((course.stored(), points[:-SCRAPES]))
        history.add(lines, tmp_path)
        history.add(objectives(start), tmp_path)
        jobs = large.targets(address, HOST)
        jobs["prometheus"] = [(f"127.0.0.1:{port}", {"host": HOST})]
        with watching(tmp_path, config(jobs, rules, "15s"), port, history.KEPT_FOR_EVER) as (prometheus, _):
            wait_for(lambda: answers(prometheus, sum(map(len, jobs.values()))), 60)
            wait_for(lambda: _iterations(prometheus) >= 3, 1000, 5)
            spread = {
                which: {
                    one.labels["rule_group"].partition(";")[2]: one.points[-1][1]
                    for one in prometheus.instant(f"{which}_over_time({DURATION}[1h:15s])", time.time())
                }
                for which in ("min", "max")
            }
    with capsys.disabled():
        print("\nfastest and slowest evaluation of each group of rules:")
        for name, seconds in spread["min"].items():
            print(f"{name:16} {seconds * 1000:6.1f} ms {spread['max'][name] * 1000:8.1f} ms")
    assert set(spread["min"]) == {group["name"] for group in GROUPS}
    assert sum(spread["min"].values()) < MOST_SECONDS


def _iterations(prometheus: Prometheus) -> float:
    """How often the group that has been evaluated the fewest times was."""
    found = prometheus.instant("min(prometheus_rule_group_iterations_total)", time.time())
    return found[0].points[-1][1] if found else 0
