"""Prometheus' own configuration: on hosts, from the inventory, and for `make monitoring`."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from observability.prometheus import local
from observability.prometheus.render import RULES, defaults
from tests.unit.deploy import playbook

ROLE = playbook.ANSIBLE / "roles/prometheus"


def configured(folder: Path, inventory: str, host: str) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """What Prometheus on `host` of an inventory of ours scrapes."""
    hosts: dict[str, Any] = yaml.safe_load(
        (playbook.ANSIBLE / "inventory" / inventory / "hosts.yml").read_text()
    )
    made = folder / "prometheus.yml"
    task: dict[str, Any] = {
        "ansible.builtin.template": {"src": str(ROLE / "templates/prometheus.yml.j2"), "dest": str(made)},
        "when": f"inventory_hostname == '{host}'",
        "vars": {**defaults(), "ansible_facts": {"architecture": "x86_64"}},
    }
    tasks = [{"ansible.builtin.include_vars": str(ROLE / "vars/main.yml")}, task]
    status, said = playbook.run(folder, tasks, hosts)
    assert status == 0, said
    if shutil.which("promtool"):
        text = made.read_text().replace("/etc/prometheus/rules/llm-*.yml", f"{RULES}/*.yml")
        made.write_text(text)
        subprocess.run(["promtool", "check", "config", made], check=True, capture_output=True)
    scrapes = yaml.safe_load(made.read_text())["scrape_configs"]
    return {
        scrape["job_name"]: [
            (target, group["labels"]) for group in scrape["static_configs"] for target in group["targets"]
        ]
        for scrape in scrapes
    }


def test_one_host_is_scraped_over_loopback(tmp_path: Path) -> None:
    jobs = configured(tmp_path, "reference-8b", "gpu1")
    assert set(jobs) == {"prometheus", "node", "llm-gateway", "llm-engine", "llm-gpu-exporter"}
    assert all(target.startswith("127.0.0.1:") for targets in jobs.values() for target, _ in targets)
    assert jobs["llm-engine"] == [("127.0.0.1:9110", {"host": "gpu1", "engine": "llama-8b-gpu0"})]


def test_several_hosts_are_scraped_by_their_addresses(tmp_path: Path) -> None:
    jobs = configured(tmp_path, "example-cluster", "front")
    engines = {(target, labels["host"], labels["engine"]) for target, labels in jobs["llm-engine"]}
    assert engines == {
        ("192.0.2.11:9110", "gpu1", "llama-8b-gpu0"),
        ("192.0.2.11:9111", "gpu1", "llama-8b-gpu1"),
        ("192.0.2.12:9110", "gpu2", "llama-8b-gpu0"),
        ("192.0.2.12:9111", "gpu2", "llama-8b-gpu1"),
    }
    assert {target for target, _ in jobs["node"]} == {"192.0.2.11:9100", "192.0.2.12:9100", "127.0.0.1:9100"}


def stack(state: Path, port: int) -> None:
    """Settings as `make up` writes them."""
    (state / "engines").mkdir()
    for name, key in (("gateway", "metrics"), ("gpu-exporter", "listen"), ("engines/local", "metrics")):
        (state / f"{name}.yaml").write_text(yaml.safe_dump({key: {"host": "127.0.0.1", "port": port}}))


def test_make_monitoring_finds_what_make_up_started(tmp_path: Path) -> None:
    stack(tmp_path, 9102)
    jobs = local.jobs_of(tmp_path)
    assert {job: targets[0][0] for job, targets in jobs.items()} == dict.fromkeys(
        ("llm-gateway", "llm-gpu-exporter", "llm-engine"), "127.0.0.1:9102"
    )
    assert jobs["llm-engine"][0][1]["engine"] == "local"


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus")
def test_make_monitoring_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert local.main(["--state", str(tmp_path)]) == 1
    assert "run `make up` first" in capsys.readouterr().err
    stack(tmp_path, 0)
    assert local.main(["--state", str(tmp_path)]) == 1
    assert "PORT=0" in capsys.readouterr().err
