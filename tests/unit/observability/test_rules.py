"""The rules: up to date, tested by promtool, each alert with a way out, in step with the daemons."""

import re
import shutil
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemons.gateway.errors import ErrorCode, status_of
from daemons.gateway.metrics import SECONDS, SHORT
from daemons.gpu_exporter.xid import CATALOGUE, PAGING, Action
from observability.grafana.panels import boards
from observability.prometheus import render
from tests.unit.deploy import playbook

ROOT = Path(__file__).parents[3]
RUNBOOKS = ROOT / "docs" / "runbooks"
RULES = sorted(render.RULES.glob("*.yml"))
TESTS = sorted((render.HERE / "tests").glob("*.test.yml"))

ACTIONS = re.compile(
    r": (?:lower|raise|free|read|look|check|drain|reset|end|reseat|remove|renew|start|add|finish|restart)\b"
)

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (prometheus)")


def load(path: Path) -> Any:
    """The YAML of `path`."""
    return yaml.safe_load(path.read_text())


def rules() -> list[dict[str, Any]]:
    """Every rule of every group."""
    groups = chain.from_iterable(load(path)["groups"] for path in RULES)
    return list(chain.from_iterable(group["rules"] for group in groups))


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDS = [rule for rule in rules() if "record" in rule]


def test_the_rendered_rules_are_up_to_date() -> None:
    assert render.main(["--check"]) == 0
    assert {path.name for path in RULES} == {path.stem for path in render.RULES.glob("*.yml.j2")}


def test_ansible_renders_the_same_rules(tmp_path: Path) -> None:
    tasks = [
        {
            "ansible.builtin.template": {
                "src": str(template),
                "dest": str(tmp_path / template.stem),
                "variable_start_string": "[[",
                "variable_end_string": "]]",
                "block_start_string": "[%",
                "block_end_string": "%]",
            }
        }
        for template in sorted(render.RULES.glob("*.yml.j2"))
    ]
    hosts = {"all": {"hosts": {"one": None}, "vars": render.defaults()}}
    status, said = playbook.run(tmp_path, tasks, hosts)
    assert status == 0, said
    for path in RULES:
        assert path.read_text().partition("\n")[2] == (tmp_path / path.name).read_text()


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", *RULES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.name))
def test_promtool_runs_the_tests(path: Path) -> None:
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_severity_an_action_and_a_runbook(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("warning", "critical")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert ACTIONS.search(notes["summary"]), notes["summary"]
    base = render.defaults()["prometheus_runbooks"]
    assert notes["runbook_url"] == f"{base}/{name}.md"


def test_every_runbook_belongs_to_an_alert_and_says_what_to_do() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == set(ALERTS)
    for path in RUNBOOKS.glob("*.md"):
        text = path.read_text()
        assert text.startswith(f"# {path.stem}\n"), path
        assert "\n## Look\n" in text, path
        assert "\n## Do\n\n1. " in text, path
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (path.parent / link).is_file(), (path, link)


def test_runbooks_name_dashboards_as_they_are_titled() -> None:
    titles = {board["title"].removeprefix("LLM: ").lower() for board in boards().values()}
    for path in RUNBOOKS.glob("*.md"):
        for sentence in re.findall(r"[Dd]ashboard (\*[^*]+\*(?:\s+and\s+\*[^*]+\*)*)", path.read_text()):
            named = {re.sub(r"\s+", " ", title).lower() for title in re.findall(r"\*([^*]+)\*", sentence)}
            assert named <= titles, path


def test_the_kv_runbooks_name_the_settings_that_help() -> None:
    for name in ("EngineKvCacheHigh", "EngineKvCacheFull"):
        text = (RUNBOOKS / f"{name}.md").read_text()
        assert "max_model_len" in text
        assert "max_num_seqs" in text


def test_every_threshold_is_used_and_named_in_a_runbook() -> None:
    templates = "".join(path.read_text() for path in render.RULES.glob("*.yml.j2"))
    thresholds = {
        name for name in render.defaults() if name.startswith(("prometheus_alert_", "prometheus_slo_"))
    }
    assert thresholds == set(re.findall(r"prometheus_(?:alert|slo)_\w+", templates))
    runbooks = "".join(path.read_text() for path in RUNBOOKS.glob("*.md"))
    assert {name for name in thresholds if "alert" in name} <= set(re.findall(r"prometheus_\w+", runbooks))


def alerts_that(fires: bool) -> set[str]:
    """Alerts that some test expects to fire, or to stay silent although there are series."""
    cases = chain.from_iterable(
        test.get("alert_rule_test", []) for path in TESTS for test in load(path)["tests"]
    )
    return {case["alertname"] for case in cases if bool(case["exp_alerts"]) is fires}


@pytest.mark.parametrize("fires", [True, False])
def test_every_alert_is_tested_both_ways(fires: bool) -> None:
    assert alerts_that(fires) == set(ALERTS)


def test_an_alert_that_fires_is_tested_beside_one_that_does_not() -> None:
    """Expected alerts are compared whole, so a series more than alerts proves that the rest stays silent."""
    for test in chain.from_iterable(load(path)["tests"] for path in TESTS):
        fired = [case for case in test.get("alert_rule_test", []) if case["exp_alerts"]]
        for case in fired:
            assert len(test["input_series"]) > len(case["exp_alerts"]), test["name"]


def outcomes(pattern: str) -> set[ErrorCode]:
    """The codes that a matcher of the availability objective selects."""
    slo = (render.RULES / "slo.yml").read_text()
    found = re.search(pattern, slo)
    assert found
    return {code for code in ErrorCode if re.fullmatch(found[1], code)}


def test_the_availability_objective_counts_what_is_our_fault() -> None:
    assert outcomes(r'outcome=~"([^"]+)"') == {code for code in ErrorCode if status_of(code) >= 500}
    assert outcomes(r'outcome!~"([^"]+)"') == {code for code in ErrorCode if status_of(code) in (429, 499)}


def test_objectives_are_edges_of_the_histograms() -> None:
    options = load(ROOT / "ansible/roles/prometheus/meta/argument_specs.yml")["argument_specs"]["main"][
        "options"
    ]
    assert set(options["prometheus_slo_first_token_seconds"]["choices"]) <= set(SECONDS)
    assert set(options["prometheus_slo_inter_token_seconds"]["choices"]) <= set(SHORT)


def test_the_fastest_burn_can_happen() -> None:
    for name in ("availability", "first_token", "inter_token"):
        assert 14.4 * (1 - render.defaults()[f"prometheus_slo_{name}"]) < 1


def test_xid_codes_are_sorted_by_severity_as_the_exporter_sorts_them() -> None:
    critical = re.search(r'xid=~"([\d|]+)"', ALERTS["GpuXidCritical"]["expr"])
    other = re.search(r'xid!~"([\d|]+)"', ALERTS["GpuXidWarning"]["expr"])
    assert critical
    assert other
    paging = {int(code) for code in critical[1].split("|")}
    silent = {int(code) for code in other[1].split("|")} - paging
    assert paging == set(PAGING)
    assert silent == {xid.code for xid in CATALOGUE.values() if xid.action is Action.APPLICATION}


def test_every_recorded_series_is_used_or_tested() -> None:
    known = "".join(path.read_text() for path in TESTS) + "".join(rule["expr"] for rule in rules())
    unused = {rule["record"] for rule in RECORDS if rule["record"] not in known}
    dashboards = (ROOT / "observability/grafana/dashboards").glob("*.json")
    shown = "".join(path.read_text() for path in dashboards)
    assert {record for record in unused if record not in shown} == set()
