"""What is recorded of objectives is what one query over all of the time would say."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from observability.prometheus.client import Points, Prometheus
from observability.prometheus.render import RULES, defaults
from tests.integration.observability import history
from tests.integration.observability.lab import missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {missing()}: apt-get install {missing()}")

END = 1_700_006_400
MINUTE, HALF_HOUR, HOUR, DAY = 60, 1800, 3600, 86400
WINDOWS = {"1h": HOUR, "6h": 6 * HOUR, "1d": DAY, "3d": 3 * DAY, "30d": 30 * DAY}
RULES_OF_OBJECTIVES = [
    rule for group in yaml.safe_load((RULES / "slo.yml").read_text())["groups"] for rule in group["rules"]
]
MODELS = {
    "steady": (31 * DAY, 90),
    "rare": (31 * DAY, 3),
    "young": (40 * HOUR, 90),
    "newborn": (20 * MINUTE, 90),
}
"""Since when each is asked for, and how often a minute."""

ASIDE = {"steady": 0.01, "rare": 0.01, "young": 0.01, "newborn": 0.15}
"""Part of a value by which both ways may differ: rates do not see what was counted during an absence, 5 of
the 720 hours; a counter's first minutes are extrapolated."""


def requests(model: str, first: int, pace: int) -> Iterator[tuple[str, Points]]:
    """Requests since `first` seconds ago: failures every hour, two bad hours, a restart and an absence."""
    counts = {"ok": 0, "engine_lost": 0}
    points: dict[str, Points] = {outcome: [] for outcome in counts}
    for ago in range(first, -1, -MINUTE):
        if ago == 10 * DAY:
            counts = dict.fromkeys(counts, 0)
        failed = (
            pace // 3 if 2 * DAY < ago <= 2 * DAY + 2 * HOUR or (ago - 10 * MINUTE) % HOUR < 5 * MINUTE else 0
        )
        counts["engine_lost"] += failed
        counts["ok"] += pace - failed
        if not 20 * DAY < ago <= 20 * DAY + 5 * HOUR:
            for outcome, count in counts.items():
                points[outcome].append((END - ago, float(count)))
    for outcome, found in points.items():
        yield history.series("llm_gateway_requests_total", {"model": model, "outcome": outcome}), found


def record(folder: Path, names: Iterable[str], first: int, interval: int) -> None:
    """Evaluate the rules that record `names` every `interval` seconds, from `first` seconds ago on."""
    wanted = [rule for rule in RULES_OF_OBJECTIVES if rule.get("record") in set(names)]
    assert wanted
    with history.idle(folder) as (prometheus, _):
        found: dict[str, Points] = {}
        for rule in wanted:
            for start in range(END - first, END + 1, 10_000 * interval):
                end = min(END, start + 9_999 * interval)
                for one in prometheus.over(rule["expr"], start, end, interval):
                    labels = {key: value for key, value in one.labels.items() if key != "__name__"}
                    name = history.series(rule["record"], labels | rule.get("labels", {}))
                    found.setdefault(name, []).extend(one.points)
    history.add(found.items(), folder)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with requests of 31 days, and what the rules record of them at their own intervals."""
    folder = tmp_path_factory.mktemp("objectives")
    history.add(
        (line for model, (first, pace) in MODELS.items() for line in requests(model, first, pace)), folder
    )
    sides = [f"slo:sli_{side}" for side in ("events", "errors")]
    record(folder, ["slo:error_budget:ratio", "slo:requests:rate5m"], 30 * DAY, MINUTE)
    record(folder, ["slo:sli_events:rate5m"], 30 * DAY, MINUTE)
    record(folder, ["slo:sli_errors:rate5m"], 30 * DAY, MINUTE)
    record(folder, [f"{side}:rate30m" for side in sides], 30 * DAY - HALF_HOUR, HALF_HOUR)
    record(folder, [f"{side}:sum30m" for side in sides], 30 * DAY - HALF_HOUR, HALF_HOUR)
    record(folder, [f"{side}:rate{window}" for side in sides for window in WINDOWS], 0, MINUTE)
    record(folder, [f"slo:sli_error:ratio_rate{window}" for window in WINDOWS], 0, MINUTE)
    record(folder, ["slo:error_budget_remaining:ratio"], 0, MINUTE)
    with history.idle(folder) as (prometheus, _):
        yield prometheus


def by_model(prometheus: Prometheus, expr: str) -> dict[str, float]:
    """The value of `expr` for each model."""
    return {one.labels["model"]: one.points[-1][1] for one in prometheus.instant(expr, END)}


def counted(prometheus: Prometheus, window: str, matcher: str = "") -> dict[str, float]:
    """How many requests there were in `window`, by the counters themselves."""
    return by_model(
        prometheus, f"sum by (model) (increase(llm_gateway_requests_total{{{matcher}}}[{window}]))"
    )


def agree(found: dict[str, float], direct: dict[str, float]) -> None:
    """Both ways say the same of every model."""
    assert set(found) == set(direct) == set(MODELS)
    for model, value in found.items():
        assert value == pytest.approx(direct[model], rel=ASIDE[model]), model


@pytest.mark.parametrize("window", WINDOWS)
def test_events_and_errors_are_those_that_the_counters_tell(service: Prometheus, window: str) -> None:
    for side, matcher in (("events", ""), ("errors", 'outcome="engine_lost"')):
        found = by_model(service, f'slo:sli_{side}:rate{window}{{slo="availability"}} * {WINDOWS[window]}')
        agree(found, counted(service, window, matcher))


@pytest.mark.parametrize("window", WINDOWS)
def test_burn_and_budget_are_those_of_one_query(service: Prometheus, window: str) -> None:
    events, errors = counted(service, window), counted(service, window, 'outcome="engine_lost"')
    direct = {model: errors[model] / events[model] for model in events}
    agree(by_model(service, f'slo:sli_error:ratio_rate{window}{{slo="availability"}}'), direct)
    if window == "30d":
        allowed = 1 - defaults()["prometheus_slo_availability"]
        left = by_model(service, 'slo:error_budget_remaining:ratio{slo="availability"}')
        agree(left, {model: 1 - share / allowed for model, share in direct.items()})
