"""Troubles of the system below: disks, clock, memory; and what Prometheus does not see."""

import re
from collections.abc import Iterator

from daemons.llmctl.host.checks.finding import Finding
from daemons.llmctl.host.machine import Machine
from daemons.llmctl.host.state import PROMETHEUS, HostState

_GIB = 1 << 30
_FOLDERS = (
    "opt/llm",
    "var/lib/llm/models",
    "var/lib/llm/gateway",
    "var/cache/llm",
    "var/lib/prometheus",
    "var/log",
)
_FULL_BYTES = 1 * _GIB
_LOW_BYTES = 10 * _GIB


def disks(machine: Machine, _: HostState) -> Iterator[Finding]:
    """File systems with little room."""
    seen = set()
    for folder in _FOLDERS:
        path = machine.root / folder
        space = machine.space(path)
        if space is None or space in seen or space.free > _LOW_BYTES:
            continue
        seen.add(space)
        what = f"{space.free / _GIB:.1f} GiB of {space.total / _GIB:.0f} GiB are free"
        cure = "docs/operations.md, When the disk is full, says what may go"
        yield Finding(f"/{folder}", what, cure, warning=space.free > _FULL_BYTES)


def clock(machine: Machine, _: HostState) -> Iterator[Finding]:
    """A clock that drifts: keys and certificates end at the wrong time."""
    told = machine.run("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if told.status == 0 and told.output.strip() == "no":
        yield Finding("clock", "is not synchronised", "timedatectl set-ntp true", warning=True)


def memory(machine: Machine, _: HostState) -> Iterator[Finding]:
    """A host that is short of memory."""
    try:
        text = (machine.root / "proc/meminfo").read_text()
    except OSError:
        return
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    if kib.get("MemAvailable", 1) < kib.get("MemTotal", 0) * 0.03:
        what = f"{kib['MemAvailable'] / 2**20:.1f} GiB of memory are available"
        cure = "systemd-cgtop -m shows who has it; lower kv_offload_gib"
        yield Finding("memory", what, cure, warning=True)


def targets(machine: Machine, _: HostState) -> Iterator[Finding]:
    """What Prometheus cannot scrape."""
    answer = machine.json(f"{PROMETHEUS}/api/v1/targets?state=active")
    if not isinstance(answer, dict):
        return
    for target in answer["data"]["activeTargets"]:
        if target["health"] == "down":
            what = f"Prometheus cannot scrape it: {target['lastError']}"
            yield Finding(
                target["labels"]["job"], what, f"curl -s {target['scrapeUrl']} | head", warning=True
            )
