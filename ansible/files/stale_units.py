"""Prints what runs with other settings than those on the disk, one a line: ``restart UNIT``, ``reload UNIT``.

A run that is interrupted after it wrote a file has told nobody, and the next finds the file as it should be.
Changes nothing; needs Python 3.10 and no more.
"""

import glob
import os
import subprocess
import sys
import time

UNITS = "/etc/systemd/system"
ENGINES = "/etc/llm/engines"
RESTARTED_FOR = {
    "llm-firewall.service": ["/etc/llm/firewall.nft", f"{UNITS}/{{unit}}"],
    "llm-gpu-exporter.service": [
        "/etc/llm/gpu-exporter.yaml",
        f"{UNITS}/{{unit}}",
        f"{UNITS}/{{unit}}.d/monitors.conf",
    ],
    "llm-gateway-metrics.socket": [f"{UNITS}/{{unit}}", f"{UNITS}/{{unit}}.d/inventory.conf"],
    "llm-gateway.socket": [f"{UNITS}/{{unit}}", f"{UNITS}/{{unit}}.d/inventory.conf"],
    "llm-gateway.service": [
        f"{UNITS}/{{unit}}",
        f"{UNITS}/{{unit}}.d/inventory.conf",
        "/etc/llm/credentials/cache-salt",
        "/etc/llm/credentials/engine-key-*",
        "/etc/llm/credentials/redis-password",
        "/etc/llm/engine-ca.pem",
    ],
    "prometheus.service": ["/etc/default/prometheus", f"{UNITS}/{{unit}}", f"{UNITS}/{{unit}}.d/llm.conf"],
    "prometheus-alertmanager.service": [
        "/etc/default/prometheus-alertmanager",
        "/etc/prometheus/alertmanager.yml",
        f"{UNITS}/{{unit}}.d/llm.conf",
    ],
    "prometheus-node-exporter.service": [
        "/etc/default/prometheus-node-exporter",
        f"{UNITS}/{{unit}}.d/llm.conf",
    ],
    "grafana-server.service": ["/etc/grafana/provisioning/*/llm.yaml", f"{UNITS}/{{unit}}.d/llm.conf"],
    "alloy.service": ["/etc/alloy/config.alloy"],
}
"""Sockets before the service that holds them."""
RELOADED_FOR = {
    "llm-gateway.service": ["/etc/llm/gateway.yaml"],
    "prometheus.service": ["/etc/prometheus/prometheus.yml", "/etc/prometheus/rules/llm-*.yml"],
    "nginx.service": [
        "/etc/llm/credentials/engine-access.key",
        "/etc/llm/credentials/engine-access.map",
        "/etc/llm/credentials/tls.key",
        "/etc/llm/engine-access.pem",
        "/etc/llm/tls.pem",
        "/etc/nginx/conf.d/llm-*.conf",
    ],
}


def files_of(engine):
    """What the unit of an engine is restarted for."""
    return [f"{ENGINES}/{engine}.yaml", f"{UNITS}/llm-engine@{engine}.service.d/placement.conf"]


def newest(patterns, unit, root):
    """When the last of some files changed, in seconds since the epoch; 0 where there is none."""
    found = [path for one in patterns for path in glob.glob(root + one.format(unit=unit))]
    return max(map(os.path.getmtime, found), default=0)


def times(unit):
    """When a unit was started, and when it was last started or reloaded; None where it does not run."""
    names = ("ActiveEnterTimestampMonotonic", "StateChangeTimestampMonotonic", "ActiveState")
    command = ["systemctl", "show", *(f"--property={name}" for name in names), unit]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shown = dict(line.split("=", 1) for line in said.splitlines())
    if shown["ActiveState"] != "active":
        return None
    booted = time.time() - time.monotonic()
    return tuple(booted + int(shown[name]) / 1e6 for name in names[:2])


def stale(times=times, root=""):
    """Verbs and units."""
    engines = [os.path.basename(path)[:-5] for path in sorted(glob.glob(f"{root}{ENGINES}/*.yaml"))]
    restarted = {**{f"llm-engine@{engine}.service": files_of(engine) for engine in engines}, **RESTARTED_FOR}
    for unit in [*restarted, *(RELOADED_FOR.keys() - restarted.keys())]:
        seen = times(unit)
        if seen is None:
            continue
        started, changed = seen
        if newest(restarted.get(unit, []), unit, root) > started:
            yield "restart", unit
        elif newest(RELOADED_FOR.get(unit, []), unit, root) > changed:
            yield "reload", unit


if __name__ == "__main__":
    sys.stdout.writelines(f"{verb} {unit}\n" for verb, unit in stale())
