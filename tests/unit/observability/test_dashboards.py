"""The dashboards: as built, and linted as Grafana's dashboard-linter and Cloudflare's pint would."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from daemons.gateway import metrics as gateway_metrics
from observability.grafana.build.__main__ import main
from observability.grafana.panels import FOLDER, Panel, boards, filled, panels, variables
from observability.grafana.units import shown
from observability.prometheus.render import RULES
from tests.unit.deploy import playbook

ROOT = Path(__file__).parents[3]
SCRAPES = Path(__file__).parent / "scrapes"
BOARDS = boards()
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in panels(board)]
IDS = [f"{name}: {panel.title}" for name, panel in PANELS]

UNRECORDED = {
    "vllm:kv_offload_cpu_cache_usage_perc": "0.32, with offloading: vllm/v1/kv_offload/cpu/common.py",
    "vllm:gpu_prefix_cache_hits_total": "0.7 to 0.10: vllm/v1/metrics/loggers.py",
    "vllm:gpu_prefix_cache_queries_total": "0.7 to 0.10: vllm/v1/metrics/loggers.py",
    "gpu_xid_last_timestamp_seconds": "appears with a GPU's first error",
    "gpu_retired_pages_pending": "GPUs before Ampere only",
    "node_systemd_unit_state": "needs systemd on the recording machine",
    "llm_gateway_retries_total": "counted from the first retry on: daemons/gateway/metrics.py",
}
"""Metrics that no recorded scrape holds, and where they come from."""

OF_PROMETHEUS = re.compile(r"up|scrape_duration_seconds|ALERTS|prometheus_\w+")
"""What Prometheus says of itself and of its targets; the proof on a live one covers them."""


def expressions() -> Iterator[tuple[str, str]]:
    """Every query of panels, annotations and rules, variables filled in, with its place."""
    for name, board in BOARDS.items():
        for panel in panels(board):
            yield from ((f"{name}: {panel.title}", filled(one.expr, "5m", "1h")) for one in panel.queries)
        for note in board["annotations"]["list"]:
            yield f"{name}: {note['name']}", filled(note["expr"], "5m", "1h")
    for path in RULES.glob("*.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from (
                (f"{path.name}: {rule.get('alert', rule.get('record'))}", rule["expr"])
                for rule in group["rules"]
            )


EXPRESSIONS = list(expressions())


Matchers = dict[str, tuple[str, str]]
"""Operator and value by label."""


def selectors(expr: str) -> Iterator[tuple[str, Matchers, bool]]:
    """Every selector in `expr`: its metric, its matchers, and whether it is a counter's rate or increase."""
    yield from _selectors(promql_parser.parse(expr), rated=False)


def _selectors(node: Any, *, rated: bool) -> Iterator[tuple[str, Matchers, bool]]:
    match node:
        case promql_parser.VectorSelector():
            yield node.name or "", {m.name: (str(m.op), m.value) for m in node.matchers.matchers}, rated
        case promql_parser.MatrixSelector():
            yield from _selectors(node.vector_selector, rated=rated)
        case promql_parser.Call():
            inside = node.func.name in ("rate", "increase", "irate")
            for argument in node.args:
                yield from _selectors(argument, rated=inside)
        case promql_parser.BinaryExpr():
            yield from _selectors(node.lhs, rated=False)
            yield from _selectors(node.rhs, rated=False)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            return
        case _:
            yield from _selectors(node.expr, rated=rated)


def test_the_dashboards_are_up_to_date() -> None:
    assert main(["--check"]) == 0


def test_there_is_no_dashboard_that_nothing_builds() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {
        "overview",
        "traffic",
        "engines",
        "tenants",
        "gpus",
        "slo",
        "host",
    }


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_a_panel_has_a_title_a_description_a_unit_thresholds_and_a_query(name: str, panel: Panel) -> None:
    assert panel.title
    assert len(panel.description) > 20
    assert panel.unit, name
    assert panel.defaults["thresholds"]["steps"]
    assert panel.queries or panel.kind == "alertlist"
    assert shown(1.5, panel.unit)


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_a_panel_asks_the_chosen_data_source(name: str, panel: Panel) -> None:
    assert panel.raw["datasource"]["uid"] == "${datasource}", name
    for target in panel.raw.get("targets", []):
        assert target["datasource"]["uid"] == "${datasource}"


def provisioned(folder: Path, **variables: object) -> dict[str, dict[str, Any]]:
    """The data sources that a deployment gives Grafana, by name."""
    template = ROOT / "ansible/roles/grafana/templates/datasources.yaml.j2"
    task = {"ansible.builtin.template": {"src": str(template), "dest": str(folder / "sources.yaml")}}
    status, said = playbook.run(folder, [task], {"all": {"hosts": {"one": None}, "vars": variables}})
    assert status == 0, said
    found = yaml.safe_load((folder / "sources.yaml").read_text())["datasources"]
    return {source["name"]: source for source in found}


def test_the_list_of_alerts_takes_them_from_a_provisioned_source_that_knows_its_alertmanager(
    tmp_path: Path,
) -> None:
    """Grafana's list looks its source up by name, among those that evaluate rules."""
    (panel,) = (panel for _, panel in PANELS if panel.kind == "alertlist")
    sources = provisioned(tmp_path, prometheus_interval="20s")
    source = sources[panel.raw["options"]["datasource"]]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == "20s"
    (manager,) = (one for one in sources.values() if one["uid"] == source["jsonData"]["alertmanagerUid"])
    assert manager["type"] == "alertmanager"


def test_without_alertmanager_nothing_points_to_it(tmp_path: Path) -> None:
    (source,) = provisioned(tmp_path, alertmanager_enabled=False).values()
    assert "alertmanagerUid" not in source["jsonData"]


@pytest.mark.parametrize("name", BOARDS)
def test_a_mark_says_what_happened(name: str) -> None:
    for note in BOARDS[name]["annotations"]["list"]:
        assert note["titleFormat"], note["name"]
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", note["expr"]))))
        assert set(re.findall(r"{{(\w+)}}", note["titleFormat"] + note["textFormat"])) <= grouped


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_a_description_names_the_metrics_of_its_panel(name: str, panel: Panel) -> None:
    named = set(re.findall(r"[a-z_:0-9A-Z]*[a-z0-9]_?[a-z0-9_:]+", panel.description))
    for query in panel.queries:
        used = {metric for metric, _, _ in selectors(filled(query.expr, "5m", "1h"))}
        stems = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in used}
        assert (
            any(one in named or one in panel.description for one in stems | used) or "…" in panel.description
        )


@pytest.mark.parametrize("name", BOARDS)
def test_every_variable_is_used_and_every_used_one_is_there(name: str) -> None:
    board = BOARDS[name]
    queries = " ".join(query.expr for panel in panels(board) for query in panel.queries)
    queries += " ".join(
        str(one.get("query")) for one in board["templating"]["list"] if one["name"] != "datasource"
    )
    used = set(re.findall(r"\$(?!__)\{?([a-z]\w*)", queries)) | {"datasource"}
    assert used == set(variables(board))


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_heeds_its_dashboard_s_variables(name: str) -> None:
    """A panel that ignores the chosen host shows something else than it seems to."""
    board = BOARDS[name]
    first = next((one for one in variables(board) if one != "datasource"), None)
    monitoring = ("prometheus_", "ALERTS")
    for panel in panels(board):
        for query in panel.queries:
            if not any(word in query.expr for word in monitoring):
                assert f'"${first}"' in query.expr or '"$model"' in query.expr, panel.title


@pytest.mark.parametrize("name", BOARDS)
def test_dashboards_are_linked_and_keep_time_and_variables(name: str) -> None:
    board = BOARDS[name]
    (link,) = board["links"]
    assert link["type"] == "dashboards"
    assert link["keepTime"]
    assert link["includeVars"]
    assert set(link["tags"]) <= set(board["tags"])
    assert {note["name"] for note in board["annotations"]["list"]} == {"Alerts", "Restarts", "Deployments"}
    assert not board["editable"]


ORIGINAL = {
    "traffic": {
        *("Requests", "Active requests", "Queue depth", "End to end", "Time to first token"),
        *("4xx by status", "5xx by status", "Authentication failures", "Rate limited"),
    },
    "gpus": {"Utilisation", "Memory used", "Memory free", "Power", "Temperature", "SM clock"},
    "engines": {"KV cache use", "Offload tier", "Running, waiting, swapped"},
}
"""Panels that the original's operators look for."""


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_s_panels_are_there(name: str) -> None:
    assert ORIGINAL[name] <= {panel.title for panel in panels(BOARDS[name])}


@pytest.mark.parametrize("name", BOARDS)
def test_panels_fill_the_grid_without_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(BOARDS[name]):
        grid = panel.grid
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel.title
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_rates_of_panels_fit_the_time_shown() -> None:
    """`$__rate_interval` for what is shown over time; fixed windows only where the title or text says so."""
    for name, panel in PANELS:
        for query in panel.queries:
            for window in re.findall(r"\[([^\]]+)\]", query.expr):
                said = panel.description
                fixed = {"1h": "hour", "30d": "30 days", "$__range": "time shown"}
                assert window == "$__rate_interval" or fixed[window] in said, (name, panel.title)


@pytest.mark.parametrize(("place", "expr"), EXPRESSIONS, ids=[place for place, _ in EXPRESSIONS])
def test_a_counter_is_rated_and_nothing_else_is(place: str, expr: str) -> None:
    for metric, _, rated in selectors(expr):
        counter = metric.endswith(("_total", "_bucket", "_sum", "_count")) and not metric.startswith(
            ("llm:", "slo:")
        )
        shown_whole = metric in (
            "gpu_ecc_errors_total",
            "gpu_remapped_rows_total",
            "node_cpu_seconds_total",
            *_COPIED,
        )
        if rated:
            assert counter or metric.startswith("llm:inter_token_latency_seconds"), (place, metric)
        elif counter:
            assert shown_whole, (place, metric)


_COPIED = {
    f"vllm:{name}_seconds_{part}"
    for name in ("inter_token_latency", "time_per_output_token")
    for part in ("bucket", "sum", "count")
}
"""Recorded under one name as they are, to be rated where they are used."""


def recorded() -> dict[str, list[dict[str, str]]]:
    """Label sets by metric, of every recorded scrape and of what the gateway can show."""
    found: dict[str, list[dict[str, str]]] = {}
    scrapes = [*SCRAPES.glob("*.txt"), *(ROOT / "tests/integration/gpu_exporter/golden").glob("*.prom")]
    assert len(scrapes) > 8
    for path in scrapes:
        for family in text_string_to_metric_families(path.read_text()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
    return found


RECORDED = recorded()
RULED = {
    rule["record"]
    for path in RULES.glob("*.yml")
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "record" in rule
}
ADDED = {"host", "job", "instance", "engine", "exported_engine"}
"""Labels of targets."""


def selected(matchers: Matchers, labels: dict[str, str]) -> bool:
    """Whether a series with `labels` of its own, and any of its target, is what `matchers` select."""
    return all(
        MATCHES[op](value, labels.get(label, ""))
        for label, (op, value) in matchers.items()
        if label not in ADDED
    )


MATCHES: dict[str, Callable[[str, str], bool]] = {
    "MatchOp.Equal": lambda value, found: value == found,
    "MatchOp.NotEqual": lambda value, found: value != found,
    "MatchOp.Re": lambda value, found: re.fullmatch(value, found) is not None,
    "MatchOp.NotRe": lambda value, found: re.fullmatch(value, found) is None,
}


@pytest.mark.parametrize(("place", "expr"), EXPRESSIONS, ids=[place for place, _ in EXPRESSIONS])
def test_every_selector_exists_in_a_recorded_scrape(place: str, expr: str) -> None:
    for metric, matchers, _ in selectors(expr):
        if metric in RULED or metric in UNRECORDED or OF_PROMETHEUS.fullmatch(metric):
            continue
        assert metric in RECORDED, (place, metric)
        labels = set().union(*RECORDED[metric]) | ADDED
        assert set(matchers) <= labels, (place, metric)
        assert any(selected(matchers, one) for one in RECORDED[metric]), (place, metric, matchers)
        for label, (op, value) in matchers.items():
            wanted = value.split("|") if op == "MatchOp.Re" and "(" not in value else []
            for word in wanted if label not in ADDED else ():
                assert any(re.fullmatch(word, one.get(label, "")) for one in RECORDED[metric]), (place, word)


@pytest.mark.parametrize("name", BOARDS)
def test_a_variable_offers_a_label_of_a_recorded_series(name: str) -> None:
    for one in BOARDS[name]["templating"]["list"]:
        if one["type"] != "query":
            continue
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", one["query"]["query"])
        assert found, one["name"]
        for metric, _, _ in selectors(filled(found[1], "5m", "1h")):
            assert metric == "up" or metric in RECORDED, metric
            assert found[2] in ADDED.union(*RECORDED.get(metric, [])), (metric, found[2])


def test_what_is_called_unrecorded_is() -> None:
    assert not set(UNRECORDED) & set(RECORDED)
    used = {metric for _, expr in EXPRESSIONS for metric, _, _ in selectors(expr)}
    assert set(UNRECORDED) <= used


def test_every_metric_of_the_gateway_is_shown_or_ruled() -> None:
    used = " ".join(expr for _, expr in EXPRESSIONS)
    for name in gateway_metrics._COUNTERS:
        assert f"llm_gateway_{name}_total" in used, name


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.5, "percentunit", "50 %"),
        (0.0123, "s", "12.3 ms"),
        (90, "s", "90 s"),
        (7200, "s", "2 h"),
        (1536, "bytes", "1.5 KiB"),
        (1536, "Bps", "1.5 KiB/s"),
        (1.7e9, "rothz", "1.7 GHz"),
        (1500, "suffix: tok/s", "1.5 k tok/s"),
        (3, "none", "3"),
    ],
)
def test_values_are_shown_with_their_units(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text
