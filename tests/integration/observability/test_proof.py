"""Every query of every dashboard and every rule, on a real Prometheus that looks at the real daemons."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from observability.grafana.panels import boards, panels
from observability.grafana.pictures import Window, write
from observability.prometheus.client import Prometheus
from tests.integration.engine.conftest import wait_for
from tests.integration.observability.lab import lab, missing

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=f"needs {missing()}: apt-get install {missing()}"),
]

LOAD_SECONDS = 20.0
PICTURE_SECONDS = float(os.environ.get("LLM_PICTURE_SECONDS", "360"))

WITHOUT_DATA = {
    "traffic: Retries A": "no engine fails before an answer of its began and leaves another to try",
    "gpus: XID errors A": "the fake GPUs have none",
    "host: Units that are not active A": "the node exporter cannot ask systemd here",
}
"""Queries that find nothing in the lab, and why that is right."""


@dataclass(frozen=True)
class Seen:
    """A Prometheus that has seen a load, and the time of that load."""

    prometheus: Prometheus
    window: Window


@pytest.fixture(scope="module")
def seen(
    library: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Seen]:
    """Two releases of vLLM, simulated, under load."""
    pictures = pytestconfig.getoption("--pictures", default=None)
    with lab(tmp_path_factory.mktemp("lab"), library) as running:
        running.simulate("llama-8b-gpu0", "llama-8b", "--sim-inter-token-ms", "12")
        running.simulate("qwen-7b-gpu1", "qwen-7b", "--sim-inter-token-ms", "15", "--sim-metrics", "0.6.6")
        running.simulate("gemma-2b-gpu1", "gemma-2b", "--sim-fault", "busy,after_seconds=8,requests=6")
        load = running.gateway(broken="gemma-2b")
        running.exporter()
        running.node()
        prometheus = running.prometheus("2s" if pictures else "1s")
        start = time.time()
        load.run(PICTURE_SECONDS if pictures else LOAD_SECONDS, 32)
        end = time.time()
        if record := pytestconfig.getoption("--record", default=None):
            running.record(Path(record))
        # The queries of some rules look at others' results.
        wait_for(lambda: prometheus.instant("slo:error_budget_remaining:ratio", time.time()), 30)
        rate = "20s" if pictures else "10s"
        yield Seen(prometheus, Window(start, max(end, time.time()), 2 if pictures else 1, rate))


def test_every_query_of_every_panel_finds_data(seen: Seen) -> None:
    empty = set()
    for name, board in boards().items():
        for panel in panels(board):
            for query in panel.queries:
                window = seen.window
                found = seen.prometheus.over(window.fill(query.expr), window.start, window.end, 5)
                if not any(one.points for one in found):
                    empty.add(f"{name}: {panel.title} {query.ref}")
    assert empty == set(WITHOUT_DATA)


def test_every_mark_and_variable_is_understood(seen: Seen) -> None:
    """Marks may find nothing, as nothing restarts here; Prometheus refuses what it does not understand."""
    window = seen.window
    for board in boards().values():
        for note in board["annotations"]["list"]:
            seen.prometheus.over(window.fill(note["expr"]), window.start, window.end, 5)
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert asked
                values = seen.prometheus.get(f"label/{asked[2]}/values", **{"match[]": window.fill(asked[1])})
                assert values, variable["name"]


def test_every_recording_rule_and_every_alert_s_metric_has_data(seen: Seen) -> None:
    end = time.time()
    groups = seen.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    empty = {name for name in recorded if not seen.prometheus.instant(name, end)}
    assert empty == set()


def test_every_dashboard_can_be_drawn(seen: Seen, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    folder = Path(pytestconfig.getoption("--pictures", default=None) or tmp_path)
    write(folder, seen.prometheus, seen.window)
    for name in boards():
        picture = (folder / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 200_000
