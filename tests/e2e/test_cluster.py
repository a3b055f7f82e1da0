"""Two GPU hosts, and a third that is their gateway and watches them; then the two alone. In order."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.lab import gpus
from tests.e2e.lab.host import Host
from tests.e2e.lab.hosts import Lab
from tests.e2e.load import Load
from tests.e2e.playbooks import ANSIBLE, SIMULATED, Playbooks, replace, until

pytestmark = [pytest.mark.slow, pytest.mark.vllm]
ENGINE = {**SIMULATED, "name": "tiny-a", "gpus": [0], "metrics_port": 9110}
LOCK = str(ANSIBLE.parent / "requirements/redis.txt")
"""With the client of shared limits."""
REDIS_PASSWORD = "shared"
GENERATED = re.compile(r'^vllm:request_success_total\{.*finished_reason="length".*\} (\S+)$', re.MULTILINE)


@pytest.fixture(scope="module")
def gpu_hosts(lab: Lab, tiny_model: Path) -> list[Host]:
    """Two hosts with GPUs."""
    made = []
    for name, number in (("gpu1", 21), ("gpu2", 22)):
        host = lab.hosts.get(name) or lab.boot(name, number, gpus.plug_in)
        shutil.copytree(tiny_model, host.root / "var/lib/llm/models/tiny", dirs_exist_ok=True)
        host.sh("chmod -R a+rX /var/lib/llm")
        made.append(host)
    return made


@pytest.fixture(scope="module")
def front(lab: Lab, gpu_hosts: list[Host]) -> Host:
    """The gateway and monitoring host."""
    return lab.hosts.get("front") or lab.boot("front", 20)


def served(host: Host) -> float:
    """Requests that the engine of a GPU host has finished."""
    return sum(map(float, GENERATED.findall(metrics(host, 9110))))


def metrics(host: Host, port: int) -> str:
    """What is offered on the host's own address or, where its Prometheus is on it, on loopback."""
    return host.sh(f"curl -s http://{host.address}:{port}/metrics || curl -s http://127.0.0.1:{port}/metrics")


def test_three_bare_hosts_become_one_service(
    front: Host, gpu_hosts: list[Host], playbooks: Playbooks
) -> None:
    playbooks.inventory(
        {"gpu_hosts": gpu_hosts, "gateways": [front], "monitoring": [front]},
        {
            "gpu_hosts": {
                "llm_engines": [ENGINE],
                "preflight_gpu_count": 2,
                "preflight_gpu_model": "RTX A6000",
            }
        },
        vllm_enabled=False,
        firewall_enabled=True,
        tls_names=["front"],
        release_lock=LOCK,
    )
    playbooks.must("deploy.yml")
    assert playbooks.must("deploy.yml").changed_tasks() == []


def targets(host: Host) -> set[tuple[str, str, str]]:
    """Job, host and health of what the Prometheus of a host scrapes."""
    answer = json.loads(host.sh("curl -s 127.0.0.1:9090/api/v1/targets"))["data"]["activeTargets"]
    return {(one["labels"]["job"], one["labels"]["host"], one["health"]) for one in answer}


GPU_JOBS = {(job, host) for job in ("node", "llm-engine", "llm-gpu-exporter") for host in ("gpu1", "gpu2")}


def test_prometheus_sees_every_target_of_every_host_up(front: Host) -> None:
    own = {(job, "front") for job in ("prometheus", "node", "llm-gateway")}
    until(60, lambda: {health for _, _, health in targets(front)} == {"up"})
    assert {(job, host) for job, host, _ in targets(front)} == GPU_JOBS | own


def test_vllm_is_reached_from_other_hosts_by_key_and_tls_only(
    lab: Lab, front: Host, gpu_hosts: list[Host]
) -> None:
    target = gpu_hosts[0]
    open_to_net = {
        (name, int(port))
        for line in target.sh("ss -ltnpH").splitlines()
        for address, port in re.findall(r"\s(\S+):(\d+)\s+\S+:\*", line)
        for name in re.findall(r'\("([^"]+)"', line)
        if not address.startswith(("127.", "[::1]"))
    }
    assert not {one for one in open_to_net if "vllm" in one[0].lower()}
    # The supervisor's own metrics are for Prometheus.
    assert {port for _, port in open_to_net} <= {22, 8443, 9100, 9101, 9110}
    base = f"https://{target.address}:8443/tiny-a"
    ask = "curl -sk -m 60 -o /dev/null -w '%{http_code}'"
    key = target.sh("cat /etc/llm/credentials/engine-access-key")
    with_key = f"{ask} -H 'Authorization: Bearer {key}'"
    assert front.sh(f"{ask} {base}/v1/models") == "401"
    assert front.sh(f"{with_key} {base}/v1/models") == "200"
    assert front.sh(f"{with_key} {base}/state") == "200"
    assert front.sh(f"{with_key} -X POST {base}/state") == "403"
    assert front.sh(f"{with_key} {base}/metrics") == "404"
    # Another host gets no answer at all: neither from an engine nor from the metrics.
    for port in (8443, 9100, 9101, 9110):
        knock = f"exec 3<>/dev/tcp/{target.address}/{port}"
        assert gpu_hosts[1].run("timeout", "2", "bash", "-c", knock, check=False).returncode != 0
        assert front.run("timeout", "60", "bash", "-c", knock, check=False).returncode == 0


def test_requests_spread_over_the_hosts(front: Host, gpu_hosts: list[Host]) -> None:
    before = [served(host) for host in gpu_hosts]
    with Load(front.address, front.sh("cat /etc/llm/credentials/keys/team-a")) as load:
        until(120, lambda: load.outcomes["whole"] >= 20)
    assert set(load.outcomes) == {"whole"}, load.outcomes
    shares = [served(host) - was for host, was in zip(gpu_hosts, before, strict=True)]
    assert min(shares) >= sum(shares) * 0.25, shares


def test_a_gpu_that_fails_takes_its_engine_out_of_service(front: Host, gpu_hosts: list[Host]) -> None:
    hurt = gpu_hosts[1]
    assert hurt.run("llmctl", "status", check=False).returncode == 0
    state = hurt.root / gpus.STATE
    good = state.read_text()
    failed = good.replace("\n0 remapped 0 0 0 0\n", "\n0 remapped 0 0 0 1\n")
    assert failed != good
    replace(state, failed)
    try:
        # Its supervisor reads the exporter, which listens for Prometheus on another host.
        until(60, lambda: "gpu2" not in serving(front))
        assert hurt.run("llmctl", "status", check=False).returncode != 0
    finally:
        replace(state, good)
    until(60, lambda: "gpu2" in serving(front))


def test_a_host_that_is_cut_off_costs_no_request_without_a_first_byte(
    lab: Lab, front: Host, gpu_hosts: list[Host]
) -> None:
    lost = gpu_hosts[1]
    with Load(front.address, front.sh("cat /etc/llm/credentials/keys/team-a")) as load:
        until(120, lambda: load.outcomes["whole"] >= 5)
        lab.cut(lost)
        until(120, lambda: "gpu2" not in serving(front))
        cut_at = load.outcomes["whole"]
        until(120, lambda: load.outcomes["whole"] >= cut_at + 10)
        lab.mend(lost)
        until(120, lambda: "gpu2" in serving(front))
        was = served(lost)
        until(120, lambda: served(lost) > was)
    broken = {outcome for outcome in load.outcomes if outcome.startswith("broken after its first byte")}
    assert set(load.outcomes) - broken == {"whole"}, load.outcomes


def test_two_hosts_without_a_third_become_one_service(gpu_hosts: list[Host], playbooks: Playbooks) -> None:
    first = gpu_hosts[0]
    first.sh("DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes redis-server", timeout=300)
    first.sh(f"printf 'bind 0.0.0.0\\nrequirepass {REDIS_PASSWORD}\\n' >>/etc/redis/redis.conf")
    first.run("systemctl", "restart", "redis-server")
    playbooks.inventory(
        {"gpu_hosts": gpu_hosts, "gateways": gpu_hosts, "monitoring": [first]},
        {"gpu_hosts": {"llm_engines": [ENGINE]}},
        vllm_enabled=False,
        firewall_enabled=True,
        gateway_settings={"shared_limits": {"url": f"redis://{first.address}:6379/0"}},
        gateway_redis_password=REDIS_PASSWORD,
        release_lock=LOCK,
    )
    playbooks.must("deploy.yml")
    # As a run leaves them that is interrupted before it told anybody.
    gpu_hosts[0].run("touch", "/etc/llm/gateway.yaml")
    gpu_hosts[1].run("touch", "/etc/llm/engines/tiny-a.yaml")
    outcome = playbooks.must("deploy.yml")
    assert set(outcome.changed_tasks()) == {"TASK [Take over what an interrupted run has written]"}
    assert (outcome.count("gpu1", "changed"), outcome.count("gpu2", "changed")) == (1, 1)
    own = {("prometheus", "gpu1"), ("llm-gateway", "gpu1"), ("llm-gateway", "gpu2")}
    until(60, lambda: {health for _, _, health in targets(first)} == {"up"})
    assert {(job, host) for job, host, _ in targets(first)} == GPU_JOBS | own


def enough(load: Load) -> bool:
    """Whether an engine that nobody chose would have been noticed."""
    return load.outcomes["whole"] >= 12


def test_a_key_and_its_limits_hold_at_every_gateway(gpu_hosts: list[Host]) -> None:
    (key,) = {host.sh("cat /etc/llm/credentials/keys/team-a") for host in gpu_hosts}
    for gateway in gpu_hosts:
        before = [served(host) for host in gpu_hosts]
        with Load(gateway.address, key) as load:
            until(120, partial(enough, load))
        assert set(load.outcomes) == {"whole"}, load.outcomes
        shares = [served(host) - was for host, was in zip(gpu_hosts, before, strict=True)]
        assert min(shares) >= sum(shares) * 0.25, shares
        assert "llm_gateway_shared_limits_up 1.0" in metrics(gateway, 9102)


def test_uninstall_takes_the_models_where_told(
    front: Host, gpu_hosts: list[Host], playbooks: Playbooks
) -> None:
    playbooks.inventory({"gpu_hosts": gpu_hosts, "gateways": [front], "monitoring": [front]})
    playbooks.must("uninstall.yml", "-e", "uninstall_models=true")
    for host in [front, *gpu_hosts]:
        assert not (host.root / "var/lib/llm").exists()


def serving(front: Host) -> str:
    """Names of the engines that the gateway uses."""
    state = front.sh("curl -s --unix-socket /run/llm/gateway/admin.sock http://localhost/state")
    return " ".join(engine["name"] for engine in json.loads(state)["engines"] if engine["serves"])
