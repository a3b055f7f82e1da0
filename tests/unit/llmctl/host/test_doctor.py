"""Each known trouble is seen, with a cure; a healthy host has none."""

import argparse
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from daemons.llmctl import doctor, status
from daemons.llmctl.host.checks import EVERY, findings
from daemons.llmctl.host.checks.finding import Finding
from daemons.llmctl.host.machine import Ran
from daemons.llmctl.host.state import PROMETHEUS, look
from daemons.runtime.errors import Fatal
from tests.unit.llmctl.host.fake_machine import FakeMachine, healthy, page, unit

ENGINE = "llm-engine@a.service"
CONTROL = "run/llm/engines/a/control.sock"


def looked(machine: FakeMachine) -> list[Finding]:
    """Everything that is found."""
    return findings(EVERY, machine, look(machine, dt.datetime.now(dt.UTC)))


def broken_unit(name: str, **changed: str) -> Callable[[FakeMachine], None]:
    """Breaks a unit."""
    return lambda machine: machine.units.update({name: unit(name, **changed)})


def engine_tells(state: str, reason: str = "") -> Callable[[FakeMachine], None]:
    """Has the engine's supervisor say this."""
    return lambda machine: machine.answers.update({CONTROL: {"state": state, "reason": reason}})


def _not_served(machine: FakeMachine) -> None:
    machine.answers["run/llm/gateway/admin.sock"]["engines"][0]["serves"] = False


def _silent(machine: FakeMachine) -> None:
    machine.answers.pop(CONTROL)
    _not_served(machine)


def _alert(machine: FakeMachine) -> None:
    labels = {"alertname": "GpuLost", "severity": "critical"}
    alert = {"state": "firing", "labels": labels, "annotations": {"summary": "a GPU is gone"}}
    machine.answers[f"{PROMETHEUS}/api/v1/alerts"] = {"data": {"alerts": [alert]}}


def _no_prometheus_answers(machine: FakeMachine) -> None:
    for url in [url for url in machine.answers if url.startswith(PROMETHEUS)]:
        del machine.answers[url]


def _target(machine: FakeMachine) -> None:
    target = {"health": "down", "labels": {"job": "node"}, "lastError": "refused", "scrapeUrl": "http://x"}
    machine.answers[f"{PROMETHEUS}/api/v1/targets?state=active"] = {"data": {"activeTargets": [target]}}


def _key(**changed: object) -> Callable[[FakeMachine], None]:
    values = {"name": "team", "secrets": [f"sha256:{'0' * 64}"], **changed}
    return lambda machine: machine.settings("keys.d/team.yaml", **values)


def _no_driver(machine: FakeMachine) -> None:
    (machine.root / "proc/driver/nvidia/version").unlink()


def _throttled(machine: FakeMachine) -> None:
    event = 'gpu_clock_event_active{gpu="0",uuid="GPU-a",reason="hw_thermal_slowdown"} 1\n'
    machine.exporter = page() + event


def _upgrades(machine: FakeMachine) -> None:
    machine.write("usr/bin/unattended-upgrade", "")


def _certificate(machine: FakeMachine) -> None:
    machine.write("etc/llm/tls.pem", "")
    machine.commands["openssl"] = Ran(1, "Certificate will expire")


def _dangling(machine: FakeMachine) -> None:
    (machine.root / "opt/llm/vllm").mkdir(parents=True)
    (machine.root / "opt/llm/vllm/current").symlink_to("/opt/llm/vllm/0.99")


def _old_worker(machine: FakeMachine) -> None:
    machine.answers["run/llm/gateway/admin.sock"]["version"] = "0.9.0"


def _free(gib: float) -> Callable[[FakeMachine], None]:
    return lambda machine: setattr(machine, "free", int(gib * (1 << 30)))


def _exporter(text: str) -> Callable[[FakeMachine], None]:
    return lambda machine: setattr(machine, "exporter", text)


def _file(path: str, text: str, mode: int = 0o644) -> Callable[[FakeMachine], None]:
    return lambda machine: setattr(machine, "_", machine.write(path, text, mode))


def _unlink(path: str) -> Callable[[FakeMachine], None]:
    return lambda machine: (machine.root / path).unlink()


TROUBLES = [
    (broken_unit(ENGINE, ActiveState="failed", ExecMainStatus="78"), ENGINE, "llmctl config check"),
    (broken_unit(ENGINE, ActiveState="failed", Result="oom-kill"), ENGINE, "kv_offload_gib"),
    (broken_unit(ENGINE, ActiveState="failed", Result="watchdog"), ENGINE, f"journalctl -u {ENGINE}"),
    (broken_unit(ENGINE, ActiveState="failed", Result="start-limit-hit"), ENGINE, "reset-failed"),
    (broken_unit(ENGINE, ActiveState="failed", Result="exit-code"), ENGINE, f"journalctl -u {ENGINE}"),
    (broken_unit(ENGINE, ActiveState="inactive", SubState="dead"), ENGINE, f"systemctl start {ENGINE}"),
    (broken_unit(ENGINE, ActiveState="activating", SubState="auto-restart"), ENGINE, "journalctl"),
    (broken_unit(ENGINE, NRestarts="7"), ENGINE, "journalctl"),
    (engine_tells("starting"), "a", "journalctl -fu"),
    (engine_tells("sick", "XID 79 on GPU-a"), "a", "When a GPU fails"),
    (engine_tells("draining"), "a", "systemctl start"),
    (_not_served, "a", "undrain"),
    (_silent, "a", "systemctl status"),
    (_alert, "GpuLost", "docs/runbooks/GpuLost.md"),
    (_no_prometheus_answers, "prometheus.service", "journalctl -u prometheus.service"),
    (_target, "node", "curl"),
    (_key(expires="2001-01-01T00:00:00Z"), "team", "another expires"),
    (_key(expires=(dt.datetime.now(dt.UTC) + dt.timedelta(days=2)).isoformat()), "team", "inventory"),
    (_key(nonsense=1), "team", "llmctl config check"),
    (_unlink("etc/llm/keys.d/team.yaml"), "keys", "llm_keys"),
    (_old_worker, "llm-gateway.service", "systemctl reload"),
    (_no_driver, "driver", "modprobe"),
    (_file("proc/driver/nvidia/version", "NVRM version: Module  550.1\n"), "driver", "reboot"),
    (_file("proc/modules", "nouveau 12 0 - Live 0x0\n"), "driver", "deploy.yml"),
    (_unlink("dev/nvidia-uvm"), "llm-gpu-nodes.service", "systemctl restart llm-gpu-nodes"),
    (_exporter(page(b="lost")), "GPU 1", "When a GPU fails"),
    (_exporter(page().replace('gpu_up{gpu="1"', 'other{gpu="1"')), "GPUs", "lspci"),
    (_throttled, "GPU 0", "fans"),
    (_upgrades, "driver", "nvidia_driver_enabled"),
    (_file("etc/llm/engines/a.yaml", "model: /models/m\nnonsense: 1\n"), "a.yaml", "inventory"),
    (_unlink("etc/llm/credentials/cache-salt"), "cache-salt", "install -m 0400"),
    (_file("etc/llm/credentials/cache-salt", "salt", 0o644), "cache-salt", "chmod go="),
    (_unlink("models/m/config.json"), "a", "copy the model"),
    (_certificate, "tls.pem", "deploy.yml"),
    (_dangling, "/opt/llm/vllm/current", "deploy.yml"),
    (_free(0.5), "/opt/llm", "When the disk is full"),
    (_free(5), "/opt/llm", "When the disk is full"),
    (_file("proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 9000 kB\n"), "memory", "kv_offload_gib"),
    (lambda machine: machine.commands.update(timedatectl=Ran(0, "no\n")), "clock", "set-ntp"),
]


@pytest.mark.parametrize(("harm", "subject", "cure"), TROUBLES)
def test_a_trouble_is_seen_with_its_cure(
    tmp_path: Path, harm: Callable[[FakeMachine], None], subject: str, cure: str
) -> None:
    machine = healthy(tmp_path)
    harm(machine)
    found = looked(machine)
    matching = [one for one in found if subject in f"{one.subject} {one.what}" and cure in one.cure]
    assert matching, found


def test_every_check_has_a_trouble_that_it_sees(tmp_path: Path) -> None:
    seen = set()
    for number, (harm, _, _) in enumerate(TROUBLES):
        (tmp_path / str(number)).mkdir()
        machine = healthy(tmp_path / str(number))
        harm(machine)
        state = look(machine, dt.datetime.now(dt.UTC))
        seen |= {check for check in EVERY if list(check(machine, state))}
    assert seen == set(EVERY)


def test_a_healthy_host_has_no_trouble(tmp_path: Path) -> None:
    assert looked(healthy(tmp_path)) == []


def test_doctor_tells_people_and_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = healthy(tmp_path)
    assert doctor.run(argparse.Namespace(json=False), machine) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    engine_tells("sick", "XID 79 on GPU-a")(machine)
    assert doctor.run(argparse.Namespace(json=True), machine) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["findings"][0]["subject"], "driver" in told["checks"]) == (False, "a", True)
    assert doctor.run(argparse.Namespace(json=False), machine) == 1
    assert "fault: a: is sick: XID 79 on GPU-a" in capsys.readouterr().out


def test_a_warning_alone_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = healthy(tmp_path)
    _throttled(machine)
    assert doctor.run(argparse.Namespace(json=False), machine) == 0
    assert "warning: GPU 0" in capsys.readouterr().out


def test_doctor_elsewhere_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="not deployed") as caught:
        doctor.run(argparse.Namespace(json=False), FakeMachine(tmp_path))
    assert caught.value.exit_code == 3


def test_status_of_a_host_is_one_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = healthy(tmp_path)
    assert status.host(machine, as_json=False) == 0
    said = capsys.readouterr().out
    for part in ("release 1.0.0", "llm-gateway.service", "ready", "keys: 1 good", "alerts: none"):
        assert part in said
    assert len(said.splitlines()) <= 24
    machine.exporter = None
    broken_unit(ENGINE, ActiveState="failed", ExecMainStatus="78")(machine)
    assert status.host(machine, as_json=False) == 1
    assert "refuses its settings" in capsys.readouterr().out


def test_status_tells_people_and_scripts_that_alerts_are_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = healthy(tmp_path)
    _no_prometheus_answers(machine)
    assert status.host(machine, as_json=False) == 1
    assert "fault: prometheus.service: runs, but does not answer" in capsys.readouterr().out
    assert status.host(machine, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["state"]["alerts"]) == (False, None)
    assert [one["subject"] for one in told["findings"]] == ["prometheus.service"]


def test_a_host_whose_prometheus_is_another_host_is_well(tmp_path: Path) -> None:
    machine = healthy(tmp_path)
    del machine.units["prometheus.service"]
    _no_prometheus_answers(machine)
    assert looked(machine) == []
    assert status.host(machine, as_json=True) == 0


def test_status_for_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = healthy(tmp_path)
    assert status.host(machine, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert [one["name"] for one in told["state"]["engines"]] == ["a"]
    machine.units = {name: unit(name, ActiveState="inactive") for name in machine.units}
    assert status.host(machine, as_json=True) == 3
    assert json.loads(capsys.readouterr().out)["ok"] is False
