"""What a host runs at one moment: units, engines, GPUs, keys and alerts as plain values."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemons.gateway.tenants.keys import KeySettings
from daemons.llmctl.host.machine import Machine
from daemons.llmctl.top.readings import Reading, read
from daemons.llmctl.top.sources import configured
from daemons.runtime import settings
from daemons.runtime.errors import Fatal

CONFIG = Path("etc/llm")
ENGINE_SOCKETS = Path("run/llm/engines")
ADMIN_SOCKET = Path("run/llm/gateway/admin.sock")
PROMETHEUS = "http://127.0.0.1:9090"
UNITS = (
    "llm.target",
    "llm-*",
    "prometheus.service",
    "prometheus-alertmanager.service",
    "prometheus-node-exporter.service",
    "grafana-server.service",
    "nginx.service",
)
_PROPERTIES = "Id,LoadState,UnitFileState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,StatusText"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as systemd has it.

    Attributes:
        enabled: as ``systemctl is-enabled`` says it.
        result: of its last end, for example ``exit-code``, ``watchdog`` or ``oom-kill``.
        exit_status: of its main process; 78 for a configuration that cannot be used.
        restarts: by systemd itself, since it was last started by hand.
    """

    name: str
    enabled: str
    active: str
    sub: str
    result: str = "success"
    exit_status: int = 0
    restarts: int = 0
    status: str = ""

    @property
    def well(self) -> bool:
        """Whether it does what it should: runs, or is a oneshot that nothing keeps active."""
        return self.active == "active" or (self.active == "inactive" and not self.wanted)

    @property
    def wanted(self) -> bool:
        """Whether it should run all the time."""
        return self.enabled == "enabled" and self.name != "llm-gpu-nodes.service"


@dataclass(frozen=True, slots=True)
class EngineReport:
    """An engine as its supervisor tells, None where it does not answer; `served` as the gateway sees it."""

    name: str
    state: str | None
    reason: str
    served: bool | None


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key by its name: ``good``, ``disabled``, ``expired``, or why its file cannot be used."""

    name: str
    state: str
    expires: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """A firing alert."""

    name: str
    severity: str
    summary: str


@dataclass(frozen=True, slots=True)
class HostState:
    """Everything; None where it cannot be told from here.

    Attributes:
        release: the release in force.
        keys: None where this user may not read them.
        alerts: None where no Prometheus answers on this host.
    """

    release: str
    units: tuple[Unit, ...]
    engines: tuple[EngineReport, ...]
    reading: Reading | None
    keys: tuple[KeyState, ...] | None
    alerts: tuple[Alert, ...] | None


def deployed(machine: Machine) -> bool:
    """Whether the service was deployed to this host."""
    return (machine.root / "etc/systemd/system/llm.target").exists()


def look(machine: Machine, now: dt.datetime) -> HostState:
    """The state of `machine`."""
    return HostState(
        release=_release(machine.root / "opt/llm/current"),
        units=tuple(_units(machine)),
        engines=tuple(_engines(machine)),
        reading=_reading(machine),
        keys=_keys(machine.root / CONFIG / "keys.d", now),
        alerts=_alerts(machine),
    )


def _release(current: Path) -> str:
    return current.readlink().name if current.is_symlink() else ""


def _units(machine: Machine) -> Iterator[Unit]:
    shown = machine.run("systemctl", "show", "--no-pager", f"--property={_PROPERTIES}", "--", *UNITS)
    for block in shown.output.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("LoadState") != "loaded" or values["Id"].endswith((".slice", ".mount")):
            continue
        yield Unit(
            name=values["Id"],
            enabled=values.get("UnitFileState", ""),
            active=values["ActiveState"],
            sub=values["SubState"],
            result=values.get("Result", "success"),
            exit_status=int(values.get("ExecMainStatus") or 0),
            restarts=int(values.get("NRestarts") or 0),
            status=values.get("StatusText", ""),
        )


def _engines(machine: Machine) -> Iterator[EngineReport]:
    gateway = machine.json("/state", machine.root / ADMIN_SOCKET) or {}
    served = {engine["name"]: engine for engine in gateway.get("engines", ())}
    for path in sorted((machine.root / CONFIG / "engines").glob("*.yaml")):
        told = machine.json("/state", machine.root / ENGINE_SOCKETS / path.stem / "control.sock") or {}
        seen: dict[str, Any] = served.pop(path.stem, {})
        yield EngineReport(path.stem, told.get("state"), told.get("reason") or "", seen.get("serves"))
    for name, engine in served.items():
        yield EngineReport(name, engine["state"], engine["reason"] or "", engine["serves"])


def _reading(machine: Machine) -> Reading | None:
    try:
        pages = machine.pages(configured(machine.root / CONFIG))
    except Fatal:
        return None
    return None if pages is None else read(pages, None)


def _keys(folder: Path, now: dt.datetime) -> tuple[KeyState, ...] | None:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".yaml")
        return tuple(_key(path, now) for path in paths)
    except FileNotFoundError:
        return ()
    except PermissionError:
        return None


def _key(path: Path, now: dt.datetime) -> KeyState:
    try:
        key = settings.load(path, KeySettings)
    except Fatal as error:
        return KeyState(path.stem, str(error).splitlines()[0])
    state = "disabled" if key.disabled else "good"
    if key.expires is not None and key.expires <= now:
        state = "expired"
    return KeyState(key.name, state, key.expires)


def _alerts(machine: Machine) -> tuple[Alert, ...] | None:
    answer = machine.json(f"{PROMETHEUS}/api/v1/alerts")
    if not isinstance(answer, dict):
        return None
    firing = [alert for alert in answer["data"]["alerts"] if alert["state"] == "firing"]
    return tuple(
        Alert(
            alert["labels"].get("alertname", "?"),
            alert["labels"].get("severity", ""),
            alert["annotations"].get("summary", ""),
        )
        for alert in firing
    )
