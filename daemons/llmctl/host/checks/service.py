"""Troubles of units, engines, keys and alerts."""

import datetime as dt
from collections.abc import Iterator

from daemons.llmctl.host.checks.finding import Finding
from daemons.llmctl.host.machine import Machine
from daemons.llmctl.host.state import ADMIN_SOCKET, HostState
from daemons.runtime.cli import counted
from daemons.runtime.errors import EXIT_CONFIG

_RESTARTS = 3
_SOON = dt.timedelta(days=14)
_RESULTS = {
    "oom-kill": ("was killed for want of memory", "lower kv_offload_gib or max_num_seqs, or give it memory"),
    "watchdog": ("stood still and was ended by its watchdog", "see why: journalctl -u {unit}"),
    "start-limit-hit": ("failed too often and is not started again", "systemctl reset-failed {unit}"),
    "timeout": ("did not come up in time", "see how far it came: journalctl -u {unit}"),
}


def units(_: Machine, state: HostState) -> Iterator[Finding]:
    """Units that should run and do not."""
    for unit in state.units:
        if unit.well or unit.active in {"activating", "reloading"}:
            continue
        if unit.exit_status == EXIT_CONFIG:
            what, cure = "refuses its settings", "llmctl config check names every fault"
        elif unit.result in _RESULTS:
            what, cure = _RESULTS[unit.result]
        elif unit.active == "failed":
            what, cure = f"failed ({unit.result}, exit status {unit.exit_status})", "journalctl -u {unit}"
        else:
            what, cure = "does not run", "systemctl start {unit}"
        yield Finding(unit.name, what, cure.format(unit=unit.name))


def start_limits(_: Machine, state: HostState) -> Iterator[Finding]:
    """Units that systemd starts, and starts again."""
    for unit in state.units:
        if unit.active == "activating" and unit.sub == "auto-restart":
            yield Finding(
                unit.name,
                f"ends and is started again, {counted(unit.restarts, 'time')} so far",
                f"journalctl -u {unit.name}",
            )


def restarts(_: Machine, state: HostState) -> Iterator[Finding]:
    """Units that run now, and did not all the time."""
    for unit in state.units:
        if unit.active == "active" and unit.restarts >= _RESTARTS:
            what = f"was restarted {unit.restarts} times since it was started"
            cure = f"see why: journalctl -u {unit.name} --grep 'Main process exited|Watchdog'"
            yield Finding(unit.name, what, cure, warning=True)


def engines(_: Machine, state: HostState) -> Iterator[Finding]:
    """Engines that would not take a request."""
    loading = {unit.name for unit in state.units if unit.active == "activating"}
    for engine in state.engines:
        unit = f"llm-engine@{engine.name}.service"
        if engine.state == "starting" or unit in loading:
            yield Finding(engine.name, "still loads its model", f"journalctl -fu {unit}")
        elif engine.state == "sick":
            cure = f"see docs/operations.md, When a GPU fails; journalctl -u {unit}"
            yield Finding(engine.name, f"is sick: {engine.reason}", cure)
        elif engine.state == "draining":
            yield Finding(engine.name, "drains and takes no new request", f"systemctl start {unit}")
        elif engine.state == "ready" and engine.served is False:
            cure = "journalctl -u llm-gateway --grep engine; llmctl undrain where it was drained by hand"
            yield Finding(engine.name, "is ready, but the gateway does not use it", cure)
        elif engine.state is None and engine.served is False:
            yield Finding(engine.name, "does not answer", f"systemctl status {unit}")


def alerts(_: Machine, state: HostState) -> Iterator[Finding]:
    """Alerts that fire, and a Prometheus that cannot tell which do."""
    silent = state.alerts is None
    for unit in state.units:
        if silent and unit.name == "prometheus.service" and unit.active == "active":
            what = "runs, but does not answer: which alerts fire is unknown"
            yield Finding(unit.name, what, f"see why: journalctl -u {unit.name}")
    for alert in state.alerts or ():
        cure = f"docs/runbooks/{alert.name}.md"
        yield Finding(alert.name, alert.summary or "fires", cure, warning=alert.severity != "critical")


def keys(_: Machine, state: HostState) -> Iterator[Finding]:
    """Key files that cannot be used, keys that have ended or soon will, and none at all."""
    now = dt.datetime.now(dt.UTC)
    for key in state.keys or ():
        if key.state == "expired":
            yield Finding(key.name, "has expired", "give it another expires, or remove it", warning=True)
        elif key.state == "good" and key.expires is not None and key.expires - now < _SOON:
            what = f"expires on {key.expires:%Y-%m-%d}"
            yield Finding(key.name, what, "give it another expires in the inventory", warning=True)
        elif key.state not in {"good", "disabled"}:
            yield Finding(key.name, key.state, "llmctl config check")
    gateway = any(unit.name == "llm-gateway.service" for unit in state.units)
    if gateway and state.keys is not None and not any(key.state == "good" for key in state.keys):
        yield Finding(
            "keys", "no key is good: every request is refused", "name one in llm_keys, run deploy.yml"
        )


def running_release(machine: Machine, state: HostState) -> Iterator[Finding]:
    """A worker of another release than the one in force."""
    told = machine.json("/state", machine.root / ADMIN_SOCKET)
    gateway = next((unit for unit in state.units if unit.name == "llm-gateway.service"), None)
    if not told or gateway is None or not state.release or told["version"] == state.release:
        return
    what = f"runs release {told['version']}, but {state.release} is in force"
    yield Finding(gateway.name, what, f"systemctl reload {gateway.name}", warning=True)
