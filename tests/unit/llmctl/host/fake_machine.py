"""A healthy host in a folder, for tests that break one thing of it."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from daemons.llmctl.host.machine import Ran, Space
from daemons.llmctl.host.state import PROMETHEUS
from daemons.llmctl.top.sources import Addresses, Pages

GIB = 1 << 30
UUIDS = ("GPU-a", "GPU-b")


def unit(name: str, **changed: str) -> dict[str, str]:
    """What ``systemctl show`` says of a unit that runs."""
    return {
        "Id": name,
        "LoadState": "loaded",
        "UnitFileState": "enabled",
        "ActiveState": "active",
        "SubState": "running",
        "Result": "success",
        "ExecMainStatus": "0",
        "NRestarts": "0",
        "StatusText": "",
        **changed,
    }


@dataclass
class FakeMachine:
    """`Machine` whose answers a test changes."""

    root: Path
    units: dict[str, dict[str, str]] = field(default_factory=dict)
    commands: dict[str, Ran] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    exporter: str | None = ""
    free: int = 500 * GIB

    def run(self, *command: str) -> Ran:
        """What was arranged for the program."""
        if command[:2] == ("systemctl", "show"):
            blocks = [
                "\n".join(f"{key}={value}" for key, value in one.items()) for one in self.units.values()
            ]
            return Ran(0, "\n\n".join(blocks) + "\n")
        return self.commands.get(command[0], Ran(127, ""))

    def pages(self, addresses: Addresses) -> Pages | None:
        """The exporter's page; engines say that they are ready."""
        engines = dict.fromkeys(addresses.engines, 'llm_engine_state{state="ready"} 1\n')
        return Pages(0.0, self.exporter, "", engines)

    def json(self, url: str, unix: Path | None = None) -> Any:
        """What was arranged for the socket or the URL."""
        return self.answers.get(url if unix is None else str(unix.relative_to(self.root)))

    def space(self, folder: Path) -> Space | None:
        """The same everywhere."""
        return Space(1000 * GIB, self.free)

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        """A file below the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def settings(self, path: str, **values: Any) -> None:
        """A settings file below ``etc/llm``."""
        self.write(f"etc/llm/{path}", yaml.safe_dump(values))


def page(**down: str) -> str:
    """The exporter's page with two GPUs; `down` names a reason by UUID's last letter."""
    lines = ['gpu_exporter_nvml_state{state="ok"} 1']
    for index, uuid in enumerate(UUIDS):
        labels = f'gpu="{index}",uuid="{uuid}"'
        reason = down.get(uuid[-1])
        lines.append(f"gpu_up{{{labels}}} {0 if reason else 1}")
        lines.append(f"gpu_temperature_celsius{{{labels}}} 60")
        if reason:
            lines.append(f'gpu_fault{{{labels},reason="{reason}"}} 1')
    return "\n".join(lines) + "\n"


def healthy(root: Path) -> FakeMachine:
    """One host with two GPUs, an engine and a key; nothing is wrong."""
    machine = FakeMachine(root, exporter=page())
    names = ["llm.target", "llm-gateway.service", "llm-engine@a.service", "llm-gpu-exporter.service"]
    machine.units = {name: unit(name) for name in [*names, "prometheus.service"]}
    machine.write("etc/systemd/system/llm.target", "")
    machine.write("etc/systemd/system/llm-gateway.service", "")
    machine.settings(
        "engines/a.yaml", model="/models/m", served_names=["m"], gpus=[0], metrics={"port": 9110}
    )
    machine.settings("gpu-exporter.yaml", expected_gpus=2)
    machine.settings("gateway.yaml", engines=[{"name": "a", "url": "unix:///run/a.sock", "models": ["m"]}])
    secret = f"sha256:{hashlib.sha256(b'sk').hexdigest()}"
    machine.settings("keys.d/team.yaml", name="team", secrets=[secret])
    machine.write("etc/llm/credentials/cache-salt", "salt", 0o400).parent.chmod(0o700)
    machine.write("models/m/config.json", "{}")
    machine.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Module  580.95.05  Release\n")
    machine.write("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05", "")
    machine.write("proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 900000 kB\n")
    for node in ("nvidiactl", "nvidia-uvm"):
        machine.write(f"dev/{node}", "")
    (root / "opt/llm/releases/1.0.0").mkdir(parents=True)
    (root / "opt/llm/current").symlink_to("/opt/llm/releases/1.0.0")
    machine.answers = {
        "run/llm/engines/a/control.sock": {"state": "ready", "reason": ""},
        "run/llm/gateway/admin.sock": {
            "version": "1.0.0",
            "engines": [{"name": "a", "state": "ready", "reason": "", "serves": True}],
        },
        f"{PROMETHEUS}/api/v1/alerts": {"data": {"alerts": []}},
        f"{PROMETHEUS}/api/v1/targets?state=active": {"data": {"activeTargets": []}},
    }
    return machine
