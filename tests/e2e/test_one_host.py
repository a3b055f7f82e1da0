"""One host from bare to uninstalled. The tests build on each other, in order.

Engine tiny-a runs the real vLLM on the CPU until `upgrade.yml` puts another in force; tiny-b the simulator.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from daemons.runtime.version import VERSION
from tests.e2e import manual
from tests.e2e.conftest import Wheels
from tests.e2e.lab import gpus
from tests.e2e.lab.host import Host
from tests.e2e.lab.hosts import Lab
from tests.e2e.load import Load
from tests.e2e.playbooks import ANSIBLE, HF_TOKEN, SIMULATED, TINY, Playbooks, replace, until
from tests.support import wheel

pytestmark = pytest.mark.vllm
HERE = Path(__file__).parent
UNITS = [
    "llm-gateway.service",
    "llm-engine@tiny-a.service",
    "llm-engine@tiny-b.service",
    "llm-gpu-exporter.service",
    "llm-gateway.socket",
    "llm.target",
    "prometheus.service",
    "prometheus-alertmanager.service",
    "prometheus-node-exporter.service",
    "nginx.service",
    "grafana-server.service",
    "alloy.service",
    "llm-certificates.timer",
    "nvidia-persistenced.service",
    "llm-gpu-nodes.service",
]
DAEMONS = ["llm-gateway.service", "llm-gpu-exporter.service", "llm-engine@tiny-a.service"]
SNAPSHOT = """
dpkg-query -W -f '${db:Status-Abbrev} ${binary:Package}\\n' | sed -n 's/^ii */package /p'
cut -d: -f1 /etc/passwd | sed 's/^/user /'
cut -d: -f1 /etc/group | sed 's/^/group /'
find /etc /opt /usr /srv /root /var/lib -xdev -not -type d | grep -v __pycache__ |
    grep -vE '^/var/lib/(dpkg|apt|systemd)/' | sed 's/^/file /'
"""


@pytest.fixture(scope="module")
def host(lab: Lab, playbooks: Playbooks, tiny_model: Path) -> Host:
    """The host, with an engine in its inventory."""
    made = lab.hosts.get("alpha") or lab.boot("alpha", 11, gpus.plug_in)
    shutil.copytree(tiny_model, made.root / "var/lib/llm/models/tiny", dirs_exist_ok=True)
    made.sh("chmod -R a+rX /var/lib/llm")
    groups = {group: [made] for group in ("gpu_hosts", "gateways", "monitoring")}
    playbooks.inventory(
        groups,
        llm_engines=[TINY, SIMULATED],
        tls_names=["alpha"],
        preflight_gpu_count=2,
        preflight_gpu_model="RTX A6000",
    )
    return made


@pytest.fixture(scope="module")
def before(host: Host) -> set[str]:
    """The host as it was."""
    snapshot = host.folder / "before"
    if not snapshot.exists():
        snapshot.write_text(host.sh(SNAPSHOT))
    return set(snapshot.read_text().splitlines())


def active(host: Host) -> dict[str, str]:
    """The state of every unit that should run."""
    states = host.run("systemctl", "is-active", *UNITS, check=False).stdout.split()
    return dict(zip(UNITS, states, strict=True))


def journal(host: Host, unit: str) -> str:
    """What a unit has said, and systemd of it."""
    return host.sh(f"journalctl -u {unit} --no-pager -o cat")


def chat(host: Host) -> str:
    """The HTTP status of a chat through nginx and the gateway."""
    return host.sh(
        'curl -sk -o /dev/null -w "%{http_code}" https://alpha/v1/chat/completions '
        "-H content-type:application/json "
        '-H "Authorization: Bearer $(cat /etc/llm/credentials/keys/team-a)" '
        """-d '{"model":"tiny","messages":[{"role":"user","content":"hi"}],"max_tokens":4}'""",
        check=False,
    )


def well(host: Host) -> bool:
    """Whether everything runs and a chat is answered."""
    return set(active(host).values()) == {"active"} and chat(host) == "200"


@pytest.mark.slow
def test_check_mode_on_a_bare_host_fails_nothing_and_changes_nothing(
    host: Host, before: set[str], playbooks: Playbooks
) -> None:
    files = host.sh("find /etc /opt -type f | sort")
    outcome = playbooks.must("deploy.yml", "--check", "--diff")
    assert outcome.count("alpha", "changed") > 20
    assert host.sh("find /etc /opt -type f | sort") == files


def test_a_bare_host_becomes_the_service(host: Host, before: set[str], playbooks: Playbooks) -> None:
    outcome = playbooks.must("deploy.yml")
    assert "sudo cat /etc/llm/credentials/grafana-admin" in outcome.output
    assert set(active(host).values()) == {"active"}, active(host)
    # Debian 12's Python takes what was compiled for its own minor version.
    fits = wheel.cannot_compile() is None and sys.version_info[:2] == (3, 11)
    kind = "compiled" if fits else "interpreted"
    assert f"relay {kind}" in host.sh("systemctl show -p StatusText llm-gateway")
    assert host.sh("curl -sk -o /dev/null -w '%{http_code}' https://alpha/ready") == "200"
    assert chat(host) == "200"


def test_prometheus_sees_every_target_up(host: Host) -> None:
    def targets() -> dict[str, str]:
        answer = json.loads(host.sh("curl -s 127.0.0.1:9090/api/v1/targets"))
        return {one["labels"]["job"]: one["health"] for one in answer["data"]["activeTargets"]}

    until(60, lambda: set(targets().values()) == {"up"})
    assert set(targets()) == {"prometheus", "node", "llm-gateway", "llm-engine", "llm-gpu-exporter"}


def test_the_end_of_the_certificate_is_seen_by_prometheus(host: Host) -> None:
    # The timer's doing: the run itself looked once, while it installed it.
    (host.root / "var/lib/prometheus/node-exporter/llm-certificates.prom").unlink()
    host.run("systemctl", "restart", "llm-certificates.timer")
    name = 'llm_certificate_expiry_timestamp_seconds{file="/etc/llm/tls.pem"}'
    line = until(60, lambda: host.sh(f"curl -s 127.0.0.1:9100/metrics | grep -F '{name}'", check=False))
    ends = host.sh('date -d "$(openssl x509 -noout -enddate -in /etc/llm/tls.pem | cut -d= -f2)" +%s')
    assert float(line.split()[-1]) == float(ends)


def test_the_journal_tells_who_asked_what(host: Host) -> None:
    said = host.sh("journalctl -u llm-gateway -o json --no-pager KEY=team-a")
    entry = json.loads(said.splitlines()[-1])
    assert (entry["KEY"], entry["MODEL"]) == ("team-a", "tiny")
    assert entry["ENGINE"] in {"tiny-a", "tiny-b"}
    assert len(entry["REQUEST_ID"]) > 8


def test_a_second_run_changes_nothing_and_brings_its_own_ansible(host: Host, playbooks: Playbooks) -> None:
    outcome = playbooks.make_deploy()
    assert outcome.status == 0, outcome.output[-6000:]
    assert outcome.changed_tasks() == []
    assert outcome.count("alpha", "changed") == 0


@pytest.mark.slow
def test_check_mode_on_a_converged_host_says_so(host: Host, playbooks: Playbooks) -> None:
    outcome = playbooks.must("deploy.yml", "--check", "--diff")
    assert outcome.changed_tasks() == []


def test_grafana_has_its_dashboards_and_a_password_of_its_own(host: Host) -> None:
    ask = "curl -s -o /dev/null -w '%{http_code}' -u admin:"
    url = "http://127.0.0.1:3000/api/search"
    assert host.sh(f"{ask}admin {url}") == "401"
    password = host.sh("cat /etc/llm/credentials/grafana-admin")
    titles = json.loads(host.sh(f"curl -s -u admin:{password} {url}"))
    assert len(titles) == len(list((ANSIBLE.parent / "observability/grafana/dashboards").glob("*.json")))


def test_a_gpu_that_fails_is_told_by_status_and_doctor(host: Host) -> None:
    state = host.root / gpus.STATE
    good = state.read_text()
    assert host.run("llmctl", "status", check=False).returncode == 0
    replace(state, good + "1 lost 1\n")
    try:
        until(60, lambda: "GPU 1" in host.run("llmctl", "status", check=False).stdout)
        told = json.loads(host.run("llmctl", "doctor", "--json", check=False).stdout)
        assert (told["ok"], "GPU 1" in {one["subject"] for one in told["findings"]}) == (False, True)
    finally:
        replace(state, good)
    until(60, lambda: host.run("llmctl", "status", check=False).returncode == 0)
    until(60, lambda: host.run("llmctl", "doctor", check=False).returncode == 0)
    assert json.loads(host.sh("llmctl doctor --json"))["ok"]


def test_status_says_that_all_is_well(host: Host, playbooks: Playbooks) -> None:
    assert "llm-gateway.service active running" in playbooks.must("status.yml").output


def test_vllm_listens_on_loopback_and_sockets_only(host: Host) -> None:
    lines = host.sh("ss -ltnpH").splitlines()
    outside = [line for line in lines if not re.search(r"\s(127\.0\.0\.1|\[::1\]):\d+\s", line)]
    assert {name for line in outside for name in re.findall(r'\("([^"]+)"', line)} <= {
        "nginx",
        "sshd",
        "systemd",
    }


def test_an_engine_is_confined(lab: Lab, host: Host) -> None:
    host.sh("cp /etc/llm/engines/tiny-a.yaml /etc/llm/engines/probe.yaml")
    (host.root / "srv/probe_engine.py").write_text((HERE / "probe_engine.py").read_text())
    # With the placement that the role gave the engine.
    units = host.root / "etc/systemd/system"
    folder = units / "llm-engine@probe.service.d"
    shutil.copytree(units / "llm-engine@tiny-a.service.d", folder)
    (folder / "probe.conf").write_text(
        "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\n"
        f"ExecStart=\nExecStart=/usr/bin/python3 /srv/probe_engine.py {lab.gateway}\n"
    )
    host.sh("systemctl daemon-reload && systemctl start llm-engine@probe.service", timeout=60)
    # The journal takes what a unit has printed at its own time.
    said = until(
        60, lambda: host.sh("journalctl -u llm-engine@probe.service -o cat | grep ^PROBE", check=False)
    )
    found = json.loads(said.removeprefix("PROBE "))
    host.sh("rm -r /etc/systemd/system/llm-engine@probe.service.d /etc/llm/engines/probe.yaml")
    host.sh("rm -r /var/cache/llm/engines/probe /srv/probe_engine.py")
    host.sh("systemctl daemon-reload && systemctl reset-failed")
    # ENXIO: the node may be opened, there is just no driver behind it.
    assert (found["gpu0"], found["gpu1"]) == ("ENXIO", "EPERM")
    assert found["outside"] in {"EPERM", "timed out"}
    assert found["keys"] in {"EACCES", "ENOENT"}
    assert found["credentials"] in {"EACCES", "ENOENT"}
    assert (found["etc"], found["models"]) == ("EROFS", "EROFS")
    assert found["other cache"] in {"EROFS", "EACCES"}
    assert (found["own cache"], found["own runtime"]) == ("ok", "ok")


def test_the_gateway_cannot_read_the_hub_token(host: Host) -> None:
    reading = host.run(
        "setpriv",
        "--reuid=llm-gateway",
        "--regid=llm-gateway",
        "--init-groups",
        "cat",
        "/etc/llm/credentials/hf-token",
        check=False,
    )
    assert reading.returncode != 0
    pid = host.sh("systemctl show -p MainPID --value llm-gateway.service")
    inside = host.run("ls", f"/proc/{pid}/root/etc/llm/credentials/", check=False)
    assert "hf-token" not in inside.stdout


def test_frozen_daemons_are_restarted(host: Host) -> None:
    def main_process(unit: str) -> str:
        return host.sh(f"systemctl show -p MainPID --value {unit}")

    frozen = {unit: main_process(unit) for unit in DAEMONS}
    host.run("kill", "-STOP", *frozen.values())
    until(90, lambda: all(main_process(unit) not in {pid, "0"} for unit, pid in frozen.items()))
    for unit in DAEMONS:
        until(60, lambda unit=unit: "watchdog timeout" in journal(host, unit).lower())  # type: ignore[misc]
    until(180, lambda: well(host))


def test_no_secret_shows_anywhere(host: Host, playbooks: Playbooks) -> None:
    secrets = host.sh("cat /etc/llm/credentials/keys/* /etc/llm/credentials/cache-salt").split()
    secrets.append(HF_TOKEN)
    assert len(secrets) == 4
    places = {
        "ansible": "\n".join(playbooks.said),
        "processes": host.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"),
        "environments": host.sh("cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"),
        "journal": host.sh("journalctl --no-pager -o export"),
    }
    assert [(place, len(one)) for place, text in places.items() for one in secrets if one in text] == []


@pytest.mark.slow
def test_keys_are_rotated_with_grace(host: Host, playbooks: Playbooks) -> None:
    old = host.sh("cat /etc/llm/credentials/keys/team-a")
    playbooks.must("rotate-keys.yml", "-e", '{"rotate_names": ["team-a"]}')
    assert host.sh("cat /etc/llm/credentials/keys/team-a") != old
    status = (
        f"curl -sk -o /dev/null -w '%{{http_code}}' https://alpha/v1/models -H 'Authorization: Bearer {old}'"
    )
    assert host.sh(status) == "200"
    until(60, lambda: chat(host) == "200")
    # The former secret gives way to the one before this.
    playbooks.must("rotate-keys.yml")
    until(60, lambda: host.sh(status) == "401")
    until(60, lambda: chat(host) == "200")


@pytest.mark.slow
def test_the_commands_of_the_manual_work_on_the_host(host: Host) -> None:
    key = "$(cat /etc/llm/credentials/keys/team-a)"
    for command in manual.on_the_host(HOST="alpha", NAME="tiny-a", KEY=key):
        done = host.run("bash", "-c", command, check=False, timeout=180)
        # journalctl --grep says 1 where nothing matches.
        allowed = {0, 1} if "--grep" in command else {0}
        assert done.returncode in allowed, f"{command}: {done.stdout}{done.stderr}"
    assert "--gpu-reset -i 0" in host.sh("cat /var/log/nvidia-smi")
    until(60, lambda: well(host))


def test_a_reload_under_load_breaks_nothing(host: Host) -> None:
    with Load(host.address, host.sh("cat /etc/llm/credentials/keys/team-a")) as load:
        until(60, lambda: load.outcomes["whole"] > 5)
        host.run("systemctl", "reload", "llm-gateway")
        reloaded = load.outcomes["whole"]
        until(60, lambda: load.outcomes["whole"] > reloaded + 10)
    assert set(load.outcomes) == {"whole"}, load.outcomes


def another_vllm(host: Host) -> None:
    """Lay out what stands for vLLM 0.32.1, installed beside the one in force: the simulator."""
    folder = host.root / "opt/llm/vllm/0.32.1"
    (folder / "lib/python3.11/site-packages/vllm-0.32.1.dist-info").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / ".complete").touch()
    program = folder / "bin/vllm"
    program.write_text('#!/bin/sh\nexec /opt/llm/current/bin/llm-simulator "$@"\n')
    program.chmod(0o755)


def test_an_upgrade_under_load_breaks_nothing(host: Host, playbooks: Playbooks, wheels: Wheels) -> None:
    another_vllm(host)
    with Load(host.address, host.sh("cat /etc/llm/credentials/keys/team-a")) as load:
        until(60, lambda: load.outcomes["whole"] > 5)
        playbooks.must("upgrade.yml", "-e", f"release_wheel={wheels.later}", "-e", "vllm_version=0.32.1")
    assert set(load.outcomes) == {"whole"}, load.outcomes
    assert host.sh("readlink /opt/llm/current") == "/opt/llm/releases/9.0.1"
    assert host.sh("readlink /opt/llm/vllm/current") == "/opt/llm/vllm/0.32.1"
    # Not only the link: the gateway's worker is the new release's, too.
    state = host.sh("curl -s --unix-socket /run/llm/gateway/admin.sock http://localhost/state")
    assert json.loads(state)["version"] == "9.0.1"
    assert "with vLLM 0.32.1" in host.sh("systemctl show -p StatusText llm-engine@tiny-a")


def test_a_release_that_fails_its_gate_rolls_back_by_itself(
    host: Host, playbooks: Playbooks, wheels: Wheels
) -> None:
    with Load(host.address, host.sh("cat /etc/llm/credentials/keys/team-a")) as load:
        outcome = playbooks.run(
            "upgrade.yml", "-e", f"release_wheel={wheels.broken}", "-e", "vllm_version=0.32.0"
        )
    assert outcome.status != 0
    assert "9.0.1 is in force again" in outcome.output, outcome.output[-4000:]
    assert host.sh("readlink /opt/llm/current") == "/opt/llm/releases/9.0.1"
    assert host.sh("readlink /opt/llm/vllm/current") == "/opt/llm/vllm/0.32.1"
    assert set(load.outcomes) == {"whole"}, load.outcomes
    assert well(host)


@pytest.mark.slow
def test_rollback_goes_back_to_the_release_before(host: Host, playbooks: Playbooks) -> None:
    playbooks.must("rollback.yml")
    assert host.sh("readlink /opt/llm/current") == f"/opt/llm/releases/{VERSION}"
    assert well(host)
    # It is in force already.
    assert playbooks.must("rollback.yml", "-e", f"rollback_to={VERSION}").changed_tasks() == []


def test_everything_comes_back_after_a_reboot(host: Host) -> None:
    host.reboot()
    until(240, lambda: well(host))


def test_uninstall_leaves_the_host_as_it_was(host: Host, before: set[str], playbooks: Playbooks) -> None:
    playbooks.must("uninstall.yml")
    after = set(host.sh(SNAPSHOT).splitlines())
    models = {one for one in after if one.startswith("file /var/lib/llm/models/")}
    assert models
    assert (sorted(before - after), sorted(after - models - before)) == ([], [])


@pytest.mark.slow
def test_every_command_of_the_manual_was_run(host: Host, playbooks: Playbooks) -> None:
    written = set(manual.on_the_controller()) - set(manual.NOT_RUN)
    by_conftest = {"make wheel"}
    by_test_cluster = {"ansible-playbook -i INV uninstall.yml -e uninstall_models=true"}
    run = {re.sub(r" -e release_wheel=\S+| -e vllm_version=\S+", "", one) for one in playbooks.commands}
    run = {re.sub(r"rollback_to=\S+", "rollback_to=VERSION", one) for one in run}
    assert written - run - by_conftest - by_test_cluster == set()
