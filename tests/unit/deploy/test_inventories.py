"""The example inventories: the daemons take what they render, and the models fit the GPUs they name."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemons.engine.config import EngineSettings
from daemons.engine.plan.catalogue import shapes, weights_of
from daemons.engine.plan.memory import GIB, ledger
from daemons.gateway.settings import GatewaySettings
from daemons.gateway.tenants.keys import KeySettings
from tests.unit.deploy import playbook, units

INVENTORIES = sorted(path.parent.name for path in (playbook.ANSIBLE / "inventory").glob("*/hosts.yml"))
ROLES = playbook.ANSIBLE / "roles"
A6000 = int(47.5 * GIB)
CATALOGUE = {
    "meta-llama/Llama-3.1-8B-Instruct": ("Llama-3.1-8B", None),
    "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4": ("Llama-3-70B", "awq"),
}
"""The shape and the quantization of each model that an example names."""
RENDERED = {
    "gateway.yaml": "gateway/templates/gateway.yaml.j2",
    "gateway.conf": "gateway/templates/llm-gateway.service.conf.j2",
    "exporter.conf": "gpu_exporter/templates/monitors.conf.j2",
    "firewall.nft": "firewall/templates/firewall.nft.j2",
}
PASSWORD = "not-shown"


@dataclass(frozen=True, slots=True)
class Written:
    """What the roles write on one host: files by name, the engines' settings by engine."""

    files: dict[str, str]
    engines: dict[str, str]

    def unit(self, name: str) -> units.Unit:
        """A drop-in."""
        return units.parse(self.files[name], name)

    def settings(self) -> list[EngineSettings]:
        """The engines' settings, as the daemon reads them."""
        return [EngineSettings.model_validate(yaml.safe_load(text)) for text in self.engines.values()]


def variables(kind: str) -> dict[str, Any]:
    """What roles know before the inventory (``defaults``) or in spite of it (``vars``)."""
    found: dict[str, Any] = {}
    for role in ("engine", "gateway", "gpu_exporter", "firewall"):
        file = ROLES / role / kind / "main.yml"
        found |= yaml.safe_load(file.read_text()) if file.is_file() else {}
    return found


@pytest.fixture(scope="module", params=INVENTORIES)
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """What is written on each host of one example inventory."""
    folder = tmp_path_factory.mktemp(request.param)
    text = (playbook.ANSIBLE / "inventory" / request.param / "hosts.yml").read_text()
    inventory: dict[str, Any] = yaml.safe_load(text)
    given = {**inventory["all"]["vars"], "gateway_redis_password": PASSWORD}
    inventory["all"]["vars"] = {**variables("defaults"), **given, **variables("vars")}
    files = ", ".join(
        f"'{name}': lookup('ansible.builtin.template', '{ROLES}/{at}')" for name, at in RENDERED.items()
    )
    template = f"'{ROLES}/engine/templates/engine.yaml.j2', template_vars={{'item': engine}}"
    engine = f"lookup('ansible.builtin.template', {template})"
    engines = (
        "{% set found = {} %}{% for engine in engine_engines %}"
        f"{{% set _ = found.update({{engine.name: {engine}}}) %}}"
        "{% endfor %}{{ found | to_json }}"
    )
    task = {
        "ansible.builtin.copy": {
            "content": f"{{{{ {{'files': {{ {files} }}, 'engines': engines | from_json}} | to_json }}}}",
            "dest": f"{folder}/{{{{ inventory_hostname }}}}.json",
        },
        "vars": {"engines": engines},
    }
    status, said = playbook.run(folder, [task], inventory)
    assert status == 0, said
    return {file.stem: Written(**json.loads(file.read_text())) for file in folder.glob("*.json")}


def test_the_daemons_take_what_is_rendered(hosts: dict[str, Written]) -> None:
    engines = [engine for host in hosts.values() for engine in host.settings()]
    assert engines
    for host in hosts.values():
        gateway = GatewaySettings.model_validate(yaml.safe_load(host.files["gateway.yaml"]))
        assert len(gateway.engines) == len(engines)


def test_every_model_fits_the_gpus_it_is_given(hosts: dict[str, Written]) -> None:
    for engine in [engine for host in hosts.values() for engine in host.settings()]:
        name, quantization = CATALOGUE[engine.model]
        plan = ledger(
            shapes()[name],
            weights_of(name, quantization),
            A6000,
            tensor_parallel=engine.tensor_parallel_size,
            utilization=engine.gpu_memory_utilization,
            max_num_seqs=engine.max_num_seqs,
        )
        assert engine.max_model_len == 8192
        # What the 70B model leaves on two cards.
        assert plan.users(engine.max_model_len) > 8, plan


def test_the_password_of_shared_limits_is_handed_over_by_systemd(hosts: dict[str, Written]) -> None:
    for host in hosts.values():
        assert PASSWORD not in "".join(host.files.values())
        handed_over = host.unit("gateway.conf").all("Service", "LoadCredential")
        assert "redis-password:/etc/llm/credentials/redis-password" in handed_over


@pytest.mark.parametrize("hosts", ["example-pair"], indirect=True)
def test_two_hosts_without_a_third_share_the_gateway_of_the_first(hosts: dict[str, Written]) -> None:
    engines = yaml.safe_load(hosts["gpu1"].files["gateway.yaml"])["engines"]
    assert {one["name"]: one["url"] for one in engines} == {
        "llama-8b-gpu0": "unix:///run/llm/engines/llama-8b-gpu0/api.sock",
        "llama-8b-gpu1": "unix:///run/llm/engines/llama-8b-gpu1/api.sock",
        "gpu2-llama-8b-gpu0": "https://192.0.2.12:8443/llama-8b-gpu0",
        "gpu2-llama-8b-gpu1": "https://192.0.2.12:8443/llama-8b-gpu1",
    }
    handed_over = hosts["gpu1"].unit("gateway.conf").all("Service", "LoadCredential")
    assert "engine-key-gpu2:/etc/llm/credentials/engine-key-gpu2" in handed_over
    # Prometheus is on the first host: its metrics reach it by address, too, and no other host is let in.
    for engine in hosts["gpu2"].settings():
        assert engine.metrics.host == "192.0.2.12"
        assert engine.gpu_exporter == "http://192.0.2.12:9101/metrics"
    admitted = hosts["gpu2"].unit("exporter.conf").all("Service", "IPAddressAllow")
    assert admitted == ["192.0.2.11", "192.0.2.12"]
    rules = hosts["gpu2"].files["firewall.nft"]
    assert "tcp dport { 8443 } ip saddr { 192.0.2.11 } accept" in rules
    assert "9110, 9111 } ip saddr { 192.0.2.11 } accept" in rules


def test_hosts_keep_the_order_of_the_inventory(tmp_path: Path) -> None:
    # That of a set would differ from run to run, and each change restarts the gateway.
    names = [f"gpu{number}" for number in range(8)]
    inventory = {"gpu_hosts": {"hosts": dict.fromkeys(names)}, "gateways": {"hosts": {"front": None}}}
    task = {
        "ansible.builtin.copy": {
            "content": "{{ gateway_remote_hosts | to_json }}",
            "dest": f"{tmp_path}/said",
        },
        "when": "inventory_hostname == 'front'",
        "vars": {"gateway_remote_hosts": variables("vars")["gateway_remote_hosts"]},
    }
    status, said = playbook.run(tmp_path, [task], inventory)
    assert (status, json.loads((tmp_path / "said").read_text())) == (0, names), said


def keys_of(folder: Path, held: dict[str, list[str]], **changes: Any) -> dict[str, dict[str, Any]]:
    """The key files of two gateways that hold the lines `held`, by host and name."""
    names = {"gateways": {"hosts": {"gw1": None, "gw2": None}}}
    given = {**variables("defaults"), "llm_keys": [{"name": "a"}, {"name": "b"}], **changes}
    results = [{"stdout_lines": held.get(host, [])} for host in ("gw1", "gw2")]
    known = {**given, **variables("vars"), "gateway_held": {"results": results}}
    template = f"{ROLES}/gateway/templates/key.yaml.j2"
    tasks: list[dict[str, Any]] = [
        {
            "ansible.builtin.set_fact": {"gateway_made": "{{ gateway_held_or_new | from_json }}"},
            "when": "inventory_hostname == ansible_play_hosts_all[0]",
        },
        {
            "ansible.builtin.template": {
                "src": template,
                "dest": f"{folder}/{{{{ inventory_hostname }}}}-{{{{ item.name }}}}",
            },
            "loop": "{{ gateway_every_key }}",
        },
    ]
    status, said = playbook.run(folder, tasks, {"all": {"vars": known}, **names})
    assert status == 0, said
    return {file.name: yaml.safe_load(file.read_text()) for file in folder.glob("gw?-*")}


def test_a_key_opens_every_gateway(tmp_path: Path) -> None:
    written = keys_of(
        tmp_path, {"gw2": ["keys/a sk-a", "keys/a.before sk-z", "keys/a.expires 2027-01-31T00:00:00Z"]}
    )
    hashed = {secret: "sha256:" + hashlib.sha256(secret.encode()).hexdigest() for secret in ("sk-a", "sk-z")}
    # A gateway that joins takes over what the other has; what none has is made once.
    assert written["gw1-a"]["secrets"] == [
        hashed["sk-a"],
        {"hash": hashed["sk-z"], "expires": "2027-01-31T00:00:00Z"},
    ]
    for name in ("a", "b", "deployment-probe"):
        assert written[f"gw1-{name}"] == written[f"gw2-{name}"]
        KeySettings.model_validate(written[f"gw1-{name}"])
    assert written["gw1-b"]["secrets"] != written["gw1-deployment-probe"]["secrets"]


def test_a_key_with_hashes_is_written_as_it_stands(tmp_path: Path) -> None:
    key = {"name": "a", "class": "batch", "secrets": ["sha256:" + "0" * 64]}
    assert keys_of(tmp_path, {}, llm_keys=[key])["gw2-a"] == key
