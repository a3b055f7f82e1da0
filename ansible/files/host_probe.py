"""Prints, as JSON, what a deployment must know of a host. Changes nothing; needs Python 3.10 and no more.

Called as ``host_probe.py [MODEL_FOLDER]``.
"""

import json
import os
import re
import shutil
import subprocess
import sys

NVIDIA = "0x10de"
DISPLAY_CLASSES = ("0x0300", "0x0302")
LISTEN = "0A"


def read(path):
    """The text of a file without surrounding blanks; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def folders(path):
    """Names in a folder, sorted; none when there is no such folder."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def normal(pci):
    """A PCI address as sysfs writes it: four digits of domain, lower case."""
    domain, _, rest = pci.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def driver_gpus(proc, sys_root):
    """GPUs as the loaded driver sees them. NVML's index follows the PCI order, the minor need not."""
    found = []
    memory = memory_of()
    for name in folders(f"{proc}/driver/nvidia/gpus"):
        text = read(f"{proc}/driver/nvidia/gpus/{name}/information")
        facts = dict(re.findall(r"^([^:\n]+):\s*(.*?)\s*$", text, flags=re.MULTILINE))
        pci = normal(name)
        node = read(f"{sys_root}/bus/pci/devices/{pci}/numa_node")
        found.append(
            {
                "pci": pci,
                "uuid": facts.get("GPU UUID", ""),
                "minor": int(facts["Device Minor"]) if facts.get("Device Minor", "").isdigit() else None,
                "model": facts.get("Model", ""),
                "memory_mib": memory.get(facts.get("GPU UUID", "")),
                # A host without NUMA says -1.
                "numa_node": int(node) if node.isdigit() else None,
                "cpus": read(f"{sys_root}/bus/pci/devices/{pci}/local_cpulist"),
            }
        )
    found.sort(key=lambda gpu: gpu["pci"])
    return [{"index": index, **gpu} for index, gpu in enumerate(found)]


def memory_of():
    """Memory of each GPU in MiB, by UUID; with ECC a part of what is installed is missing."""
    lines = command(
        "nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"
    ).splitlines()
    fields = [line.split(", ") for line in lines]
    return {field[0]: int(field[1]) for field in fields if len(field) == 2 and field[1].isdigit()}


def pci_gpus(sys_root):
    """PCI addresses of NVIDIA GPUs, whether a driver is there or not."""
    base = f"{sys_root}/bus/pci/devices"
    return [
        name
        for name in folders(base)
        if read(f"{base}/{name}/vendor") == NVIDIA and read(f"{base}/{name}/class")[:6] in DISPLAY_CLASSES
    ]


def listeners(proc):
    """Listening TCP ports and the units whose processes hold them."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in read(f"{proc}/net/{table}").splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN:
                inodes[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    ports = {}
    for pid in filter(str.isdigit, folders(proc)):
        for fd in folders(f"{proc}/{pid}/fd"):
            try:
                target = os.readlink(f"{proc}/{pid}/fd/{fd}")
            except OSError:
                continue
            inode = target[8:-1] if target.startswith("socket:[") else ""
            if inode in inodes:
                ports.setdefault(inodes[inode], set()).add(unit_of(proc, pid))
    return {str(port): sorted(units) for port, units in sorted(ports.items())}


def unit_of(proc, pid):
    """The systemd unit of a process; its command name outside of any."""
    for line in read(f"{proc}/{pid}/cgroup").splitlines():
        last = line.rpartition("/")[2]
        if last.endswith((".service", ".scope")):
            return last
    return read(f"{proc}/{pid}/comm")


def command(*words):
    """What a command prints; empty when it is missing or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def disk(folder):
    """Free space for a folder that may not exist yet, and whether a rotating disk is under it."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "/"
    device = command("findmnt", "-no", "SOURCE", "-T", folder)
    rotational = command("lsblk", "-dno", "ROTA", device) if device.startswith("/dev/") else ""
    return {
        "folder": folder,
        "free_gib": shutil.disk_usage(folder).free / 2**30,
        "rotational": "1" in rotational.split(),
    }


def probe(models="/var/lib/llm/models", proc="/proc", sys_root="/sys"):
    """Everything, as one dictionary."""
    version = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", read(f"{proc}/driver/nvidia/version"))
    return {
        "gpus": driver_gpus(proc, sys_root),
        "pci_gpus": pci_gpus(sys_root),
        "driver": version.group(1) if version else None,
        "listeners": listeners(proc),
        "models_disk": disk(models),
        "system_disk": disk("/opt/llm"),
        "clock_synchronised": command("timedatectl", "show", "-p", "NTPSynchronized", "--value") == "yes",
        "secure_boot": "SecureBoot enabled" in command("mokutil", "--sb-state"),
        "systemd": int((re.search(r"systemd (\d+)", command("systemctl", "--version")) or [0, 0])[1]),
    }


if __name__ == "__main__":
    print(json.dumps(probe(*sys.argv[1:2])))
