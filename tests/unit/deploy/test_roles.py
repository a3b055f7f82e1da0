"""The roles: specifications, documentation, lint, and what they render."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from daemons.engine.config import EngineSettings
from daemons.gateway.settings import GatewaySettings
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.keys import KeySettings
from daemons.runtime.settings import Settings
from tests.unit.deploy import playbook, units

ROLES = sorted(path for path in (playbook.ANSIBLE / "roles").iterdir() if path.is_dir())
WANTED = {
    "preflight",
    "nvidia_driver",
    "cuda",
    "python",
    "release",
    "vllm",
    "model",
    "engine",
    "gateway",
    "gpu_exporter",
    "prometheus",
    "alertmanager",
    "node_exporter",
    "grafana",
    "tls",
    "firewall",
    "log_shipper",
}
A6000 = [
    {"index": 0, "pci": "0000:41:00.0", "uuid": "GPU-a", "minor": 1, "numa_node": 0, "cpus": "0-15,32-47"},
    {"index": 1, "pci": "0000:c1:00.0", "uuid": "GPU-b", "minor": 0, "numa_node": 1, "cpus": "16-31,48-63"},
]


def test_every_role_is_there() -> None:
    assert {role.name for role in ROLES} >= WANTED


@pytest.mark.parametrize("role", ROLES, ids=lambda role: str(role.name))
def test_defaults_equal_the_specification(role: Path) -> None:
    options = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
    specified = {name: option["default"] for name, option in options.items() if "default" in option}
    assert (yaml.safe_load((role / "defaults/main.yml").read_text()) or {}) == specified


def test_tables_are_up_to_date() -> None:
    tool = [sys.executable, str(playbook.ANSIBLE / "tools/document_roles.py"), "--check"]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_only_the_core_s_own_modules_are_used() -> None:
    for file in playbook.ANSIBLE.rglob("*.yml"):
        others = re.findall(
            r"\b(?:community|ansible\.posix|containers|nvidia)\.[a-z_]+\.[a-z_]+", file.read_text()
        )
        assert others == [], file


def test_the_installer_s_lock_is_that_of_the_daemons() -> None:
    lock = (playbook.ANSIBLE / "roles/python/files/uv.txt").read_text().strip()
    assert lock in (units.REPO / "requirements/daemons.txt").read_text()


@pytest.mark.skipif(shutil.which("git") is None, reason="git not found: ansible-lint asks it for the files")
def test_ansible_lint_finds_nothing_under_its_strictest_profile() -> None:
    lint = [str(Path(sys.executable).parent / "ansible-lint"), "--offline", "-q", "--nocolor", "--strict"]
    done = subprocess.run(
        [*lint, "--profile", "production", "ansible"],
        cwd=units.REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def engine(**changes: Any) -> dict[str, Any]:
    """An engine of the inventory."""
    return {"name": "a", "model": "org/m", "served_names": ["m"], "gpus": [0], "metrics_port": 9110} | changes


def placement(
    folder: Path, *, metrics_host: str = "127.0.0.1", monitors: Sequence[str] = (), **changes: Any
) -> units.Unit:
    """The drop-in that pins an engine, on the host with two A6000."""
    item = engine(**changes)
    template = {
        "name": "Render",
        "ansible.builtin.template": {
            "src": str(playbook.ANSIBLE / "roles/engine/templates/placement.conf.j2"),
            "dest": str(folder / "placement.conf"),
        },
    }
    variables = {
        "engine_gpus": A6000,
        "item": item,
        "engine_metrics_host": metrics_host,
        "engine_monitors": list(monitors),
    }
    status, said = playbook.run(folder, [template], {"all": {"hosts": {"gpu1": None}, "vars": variables}})
    assert status == 0, said
    return units.parse((folder / "placement.conf").read_text(), "placement.conf")


@pytest.mark.parametrize("wanted", [0, "GPU-a", "0000:41:00.0", "41:00.0"])
def test_an_engine_is_pinned_to_its_gpu_s_minor_cores_and_memory(wanted: int | str, tmp_path: Path) -> None:
    unit = placement(tmp_path, gpus=[wanted])
    # Index 0 is minor 1 on this host.
    assert unit.all("Service", "DeviceAllow") == ["/dev/char/195:1 rw"]
    assert unit.all("Service", "CPUAffinity") == ["0-15 32-47"]
    assert unit.all("Service", "NUMAPolicy") == ["preferred"]
    assert unit.all("Service", "NUMAMask") == ["0"]


def test_an_engine_over_both_gpus_gets_both(tmp_path: Path) -> None:
    unit = placement(tmp_path, gpus=[0, 1], tensor_parallel_size=2)
    assert unit.all("Service", "DeviceAllow") == ["/dev/char/195:0 rw", "/dev/char/195:1 rw"]
    assert unit.all("Service", "NUMAPolicy") == ["interleave"]
    assert {f"Service.{key}" for key in unit.sections["Service"]} <= units.known_to_249()


def test_an_engine_on_the_cpu_opens_no_gpu(tmp_path: Path) -> None:
    assert placement(tmp_path, gpus=[]).sections["Service"] == {}


def test_an_engine_is_reached_by_monitors_and_reaches_the_exporter_of_its_host(tmp_path: Path) -> None:
    unit = placement(tmp_path, metrics_host="10.0.0.5", monitors=["10.0.0.9"])
    assert unit.all("Service", "IPAddressAllow") == ["10.0.0.9", "10.0.0.5"]


def preflight(folder: Path, **changes: Any) -> str:
    """What preflight says of a host, with `changes` to an inventory that is right."""
    host = {
        "gpus": [{**gpu, "model": "NVIDIA RTX A6000"} for gpu in A6000],
        "pci_gpus": ["0000:41:00.0", "0000:c1:00.0"],
        "driver": "580.95.05",
        "listeners": {},
        "models_disk": {"folder": "/", "free_gib": 900, "rotational": False},
        "system_disk": {"folder": "/", "free_gib": 900, "rotational": False},
        "clock_synchronised": True,
        "secure_boot": False,
        "systemd": 249,
    } | changes.pop("host", {})
    facts = {
        "distribution": "Ubuntu",
        "distribution_version": "22.04",
        "distribution_major_version": "22",
        "kernel": "5.15.0-130-generic",
        "architecture": "x86_64",
        "memtotal_mb": 128 * 1024,
    } | changes.pop("facts", {})
    groups = changes.pop("groups", {})
    role = playbook.ANSIBLE / "roles/preflight"
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    variables = {"llm_engines": [engine()], **changes}
    options = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]
    (types,) = (
        task
        for task in yaml.safe_load((role / "tasks/main.yml").read_text())
        if "ansible.builtin.validate_argument_spec" in task
    )
    tasks: list[dict[str, Any]] = [
        # As Ansible does it ahead of any role.
        {"ansible.builtin.validate_argument_spec": {"argument_spec": options["options"]}},
        {"ansible.builtin.include_vars": str(role / "vars/main.yml")},
        {
            "ansible.builtin.set_fact": {
                "preflight_host": host,
                "preflight_deployed": {"stat": {"exists": False}},
                "preflight_specifications": str(role.parent),
                "preflight_variables": list(variables),
            }
        },
        types,
        {
            "ansible.builtin.copy": {
                "content": "{{ preflight_faults | join('\n') }}",
                "dest": str(folder / "said"),
            }
        },
        {"ansible.builtin.copy": {"content": "{{ preflight_warnings }}", "dest": str(folder / "warned")}},
    ]
    for task in tasks:
        task["vars"] = {"ansible_facts": facts}
        task["when"] = "inventory_hostname == 'gpu1'"
    groups = {name: {"hosts": {"gpu1": None}} for name in ("gpu_hosts", "gateways", "monitoring")} | groups
    status, said = playbook.run(folder, tasks, {"all": {"vars": {**defaults, **variables}}, **groups})
    assert status == 0, said
    return (folder / "said").read_text()


def test_a_host_that_is_right_passes(tmp_path: Path) -> None:
    assert preflight(tmp_path) == ""


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = preflight(
        tmp_path,
        host={
            "listeners": {"9101": ["nginx.service"], "8080": ["init.scope"]},
            "clock_synchronised": False,
            "system_disk": {"folder": "/", "free_gib": 3, "rotational": False},
            "models_disk": {"folder": "/srv", "free_gib": 900, "rotational": True},
        },
        facts={"distribution_version": "20.04", "kernel": "5.4.0-200-generic", "memtotal_mb": 4096},
        preflight_gpu_count=4,
        preflight_gpu_model="H100",
        llm_engines=[
            engine(name="A b"),
            engine(gpus=[7], metrics_port=9110),
            engine(name="c", metrics_port=9100),
        ],
        llm_keys=[
            {"name": "old", "secrets": ["dev-key-1"]},
            {
                "name": "x",
                "secrets": ["sha256:" + "e2186dbdb1bb4193608605e84f33208765b5693b55edd4f730a719a100eeea6f"],
            },
        ],
    )
    for fault in (
        "Ubuntu 20.04 is not supported",
        "kernel 5.4.0-200-generic is older",
        "4.0 GiB of memory",
        "3 GiB free under /opt",
        "the clock is not synchronised",
        "2 GPUs found, the inventory says 4",
        "the inventory says H100",
        "port 9101 is taken by nginx.service",
        "A b is no engine name",
        "GPU 7 is asked for, this host has 2",
        "two engines share one metrics_port",
        "belongs to the service itself",
        "key old: secrets hold hashes",
        "key x: its secret is a published example",
    ):
        assert fault in said
    assert "8080" not in said
    assert "rotating disk" in (tmp_path / "warned").read_text()


def test_slips_of_the_pen_are_refused(tmp_path: Path) -> None:
    said = preflight(
        tmp_path,
        llm_engines=[
            engine(max_modle_len=4096, tensor_parallel_size="1"),
            engine(name="b", gpus=1, metrics_port=9111),
            engine(name="c", served_names="m", gpus=[], metrics_port=9112),
        ],
        llm_keys=[
            {"name": "x", "limit": {"concurrency": 1}, "limits": {"request_per_minute": 1}},
            {"name": "y", "class": "intractive"},
            {"name": "y"},
            {"name": "deployment-probe"},
        ],
        llm_key=[],
        firewall_enable=True,
        gateway_settings={"timeots": {}},
        model_hours="long",
        tls_certificate="acme",
        vllm_version="0.6.6",
    )
    for fault in (
        "engine a: there is no setting max_modle_len",
        "engine b: gpus is a list, as in [1]",
        "engine c: served_names is a list, as in [m]",
        "key x: there is no setting limit\n",
        "key x: there is no setting request_per_minute",
        "key y: class is interactive, default or batch, not intractive",
        "two keys are named y",
        "key deployment-probe: the name belongs to the service itself",
        "there is no variable llm_key:",
        "there is no variable firewall_enable:",
        "gateway_settings: there is no setting timeots",
        "argument 'model_hours' is of type str",
        "tls_acme_email is missing",
        "vLLM 0.6.6 has known holes",
    ):
        assert fault in said
    assert len(said.splitlines()) == 14, said


@pytest.mark.parametrize("wrong", [{"a": {"model": "org/m"}}, ["a"], None])
def test_engines_and_keys_that_are_no_list_are_told_in_a_sentence(wrong: object, tmp_path: Path) -> None:
    engines, keys = preflight(tmp_path, llm_engines=wrong, llm_keys=wrong).splitlines()
    assert engines.startswith("llm_engines must be a list of engines, each of them a mapping: - {name: ")
    assert keys.startswith("llm_keys must be a list of keys, each of them a mapping: - {name: ")


def test_a_setting_of_an_engine_that_is_to_be_a_number_is_one(tmp_path: Path) -> None:
    right = engine(max_model_len=None, max_num_seqs="64", gpu_memory_utilization=0.8)
    assert preflight(tmp_path, llm_engines=[right]) == ""
    wrong = engine(max_model_len="long", max_num_seqs=[64])
    assert preflight(tmp_path, llm_engines=[wrong]).splitlines() == [
        "engine a: max_model_len must be a number, not long",
        "engine a: max_num_seqs must be a number, not [64]",
    ]


def test_the_groups_and_addresses_of_several_hosts_are_looked_at(tmp_path: Path) -> None:
    facts = {"all_ipv4_addresses": ["10.0.0.5"]}
    front = {"hosts": {"front": {"llm_address": "10.0.0.5"}}}
    groups = {"gpu_hosts": {}, "gpu_host": {"hosts": {"gpu2": None}}, "gateways": front}
    said = preflight(tmp_path, facts=facts, groups=groups, llm_address="10.0.0.6")
    assert "the group gpu_hosts is empty" in said
    assert "llm_address 10.0.0.6 is no address of this host, which has 10.0.0.5" in said
    assert "left alone: gpu2" in (tmp_path / "warned").read_text()
    assert "llm_address is missing" in preflight(tmp_path, facts=facts, groups={"gateways": front})


def test_an_engine_may_take_the_port_of_one_that_leaves(tmp_path: Path) -> None:
    def said(*names: str) -> str:
        engines = [engine(name=name, gpus=[], metrics_port=9110 + n) for n, name in enumerate(names)]
        listeners = {"9110": ["llm-engine@old.service"]}
        return preflight(tmp_path, host={"listeners": listeners}, llm_engines=engines)

    assert said("new") == ""
    assert "port 9110 of engine new is taken by llm-engine@old.service" in said("new", "old")


def test_preflight_knows_what_an_inventory_may_say() -> None:
    known = yaml.safe_load((playbook.ANSIBLE / "roles/preflight/vars/main.yml").read_text())

    def names(model: type[Settings]) -> list[str]:
        return sorted(field.alias or name for name, field in model.model_fields.items())

    assert known["preflight_roles"] == [role.name for role in ROLES]
    keys = known["preflight_keys_of"]
    assert keys["engine"] == sorted([*names(EngineSettings), "name", "metrics_port"])
    assert keys["gateway"] == names(GatewaySettings)
    numbers = {
        name
        for name, field in EngineSettings.model_fields.items()
        if {int, float} & {field.annotation, *get_args(field.annotation)}
    }
    assert known["preflight_engine_numbers"] == sorted([*numbers, "metrics_port"])
    assert (keys["key"], keys["limits"]) == (names(KeySettings), names(Bounds))
    read = {
        variable
        for file in playbook.ANSIBLE.rglob("*")
        if file.suffix in {".yml", ".j2"} and "inventory" not in file.parts
        for variable in re.findall(
            r"\bllm_(?:address|engines|hf_token|keys|mirror_\w+|tls)\b", file.read_text()
        )
    }
    assert set(known["preflight_shared"]) == read


def test_engines_that_overfill_a_gpu_are_refused(tmp_path: Path) -> None:
    engines = [engine(), engine(name="b", metrics_port=9111)]
    assert "GPU 0 is claimed by several engines to 1.8" in preflight(tmp_path, llm_engines=engines)


@pytest.mark.parametrize(("share", "refused"), [(0.97, True), (0.96, False), (0.90, False)])
def test_a_share_that_would_make_an_alert_permanent_is_refused(
    share: float, refused: bool, tmp_path: Path
) -> None:
    said = preflight(
        tmp_path, preflight_gpu_memory_gib=48, llm_engines=[engine(gpu_memory_utilization=share)]
    )
    assert ("the alert GpuMemoryLow (below 2 GB) would never end" in said) is refused


def test_the_memory_that_the_driver_tells_wins(tmp_path: Path) -> None:
    host = {"gpus": [{**A6000[0], "model": "RTX A6000", "memory_mib": 16 * 1024}]}
    said = preflight(tmp_path, host=host, preflight_gpu_memory_gib=48)
    assert "GPU 0: gpu_memory_utilization 0.9 leaves 1.7 GB free" in said
    lower = preflight(tmp_path, host=host, prometheus_alert_gpu_memory_free_gb=1.5)
    assert lower == ""


def test_preflight_knows_the_alert_s_own_threshold() -> None:
    roles = playbook.ANSIBLE / "roles"
    threshold = yaml.safe_load((roles / "prometheus/defaults/main.yml").read_text())[
        "prometheus_alert_gpu_memory_free_gb"
    ]
    preflights = yaml.safe_load((roles / "preflight/defaults/main.yml").read_text())
    assert f"default({threshold})" in preflights["preflight_gpu_memory_free_gb"]


def test_the_log_shipper_is_off_unless_wanted() -> None:
    role = playbook.ANSIBLE / "roles/log_shipper"
    assert yaml.safe_load((role / "defaults/main.yml").read_text())["log_shipper_enabled"] is False
    (task,) = yaml.safe_load((role / "tasks/main.yml").read_text())
    assert task["when"] == "log_shipper_enabled"
