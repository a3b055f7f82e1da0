"""Troubles of GPUs and their driver."""

import re
from collections.abc import Iterator

import yaml

from daemons.llmctl.host.checks.finding import Finding
from daemons.llmctl.host.machine import Machine
from daemons.llmctl.host.state import CONFIG, HostState

_HOT = frozenset({"hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown", "hw_slowdown"})


def _uses_gpus(machine: Machine) -> bool:
    return any(
        _asks_for_gpus(path.read_text()) for path in (machine.root / CONFIG / "engines").glob("*.yaml")
    )


def _asks_for_gpus(text: str) -> bool:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    return isinstance(content, dict) and bool(content.get("gpus"))


def _loaded_driver(machine: Machine) -> str:
    try:
        text = (machine.root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"Module\s+(\d+[\d.]*)", text)
    return found[1] if found else ""


def driver(machine: Machine, _: HostState) -> Iterator[Finding]:
    """No driver, or a library of another version than the module."""
    if not _uses_gpus(machine):
        return
    loaded = _loaded_driver(machine)
    if not loaded:
        cure = "modprobe nvidia nvidia-uvm; dmesg | grep -i nvidia says why it fails; deploy.yml installs one"
        yield Finding("driver", "no NVIDIA driver is loaded", cure)
        return
    for library in sorted((machine.root / "usr/lib").glob("*/libnvidia-ml.so.*.*")):
        installed = library.name.removeprefix("libnvidia-ml.so.")
        if installed != loaded:
            what = f"the loaded driver is {loaded}, the installed one {installed}: no new CUDA program starts"
            yield Finding("driver", what, "drain the engines, then reboot")


def nouveau(machine: Machine, _: HostState) -> Iterator[Finding]:
    """The wrong driver."""
    try:
        modules = (machine.root / "proc/modules").read_text()
    except OSError:
        return
    if re.search(r"^nouveau ", modules, re.MULTILINE):
        yield Finding("driver", "nouveau holds the GPUs", "run deploy.yml, which keeps it away, and reboot")


def nodes(machine: Machine, _: HostState) -> Iterator[Finding]:
    """Device nodes that CUDA needs."""
    if not _loaded_driver(machine) or not _uses_gpus(machine):
        return
    absent = [name for name in ("nvidiactl", "nvidia-uvm") if not (machine.root / "dev" / name).exists()]
    if absent:
        what = f"/dev/{', /dev/'.join(absent)} missing: CUDA cannot start"
        yield Finding("llm-gpu-nodes.service", what, "systemctl restart llm-gpu-nodes")


def missing(machine: Machine, state: HostState) -> Iterator[Finding]:
    """Fewer GPUs than the host should have."""
    if state.reading is None:
        return
    try:
        told = yaml.safe_load((machine.root / CONFIG / "gpu-exporter.yaml").read_text()) or {}
    except (OSError, yaml.YAMLError):
        return
    expected = told.get("expected_gpus")
    count = expected if isinstance(expected, int) else len(expected or ())
    present = sum(gpu.up for gpu in state.reading.gpus)
    if present < count:
        cure = "journalctl -k --grep Xid; lspci -d 10de: shows what is on the bus; reseat or replace it"
        yield Finding("GPUs", f"{present} of {count} GPUs answer", cure)


def faults(_: Machine, state: HostState) -> Iterator[Finding]:
    """GPUs that do not answer."""
    for gpu in state.reading.gpus if state.reading else ():
        if not gpu.up:
            cure = "docs/operations.md, When a GPU fails: journalctl -k --grep Xid names the error"
            yield Finding(f"GPU {gpu.index or gpu.uuid}", gpu.fault or "does not answer", cure)


def throttled(_: Machine, state: HostState) -> Iterator[Finding]:
    """GPUs that clock down against their will."""
    for gpu in state.reading.gpus if state.reading else ():
        if reasons := sorted(_HOT.intersection(gpu.clock_events)):
            what = f"clocks down ({', '.join(reasons)}) at {gpu.temperature_celsius:.0f} °C"
            cure = "see to fans, filters and the room; nvidia-smi -q -d PERFORMANCE"
            yield Finding(f"GPU {gpu.index}", what, cure, warning=True)


def upgrades(machine: Machine, _: HostState) -> Iterator[Finding]:
    """A driver that upgrades by itself under running engines."""
    if not _loaded_driver(machine) or not (machine.root / "usr/bin/unattended-upgrade").exists():
        return
    if not (machine.root / "etc/apt/apt.conf.d/52llm-nvidia").exists():
        what = "unattended upgrades may change the driver under running engines"
        yield Finding("driver", what, "let deploy.yml manage it: nvidia_driver_enabled: true", warning=True)
