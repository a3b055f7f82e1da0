"""A host with two GPUs: their slots on the PCI bus, and a stub driver with the exporter's fake NVML."""

import re
import subprocess
from pathlib import Path

from tests.e2e.lab.packages import Package, publish

DRIVER = "580.95.05"
GRAFANA = "11.3.0"
ALLOY = "1.11.0-1"
STATE = "usr/share/stub-nvidia/nvml.conf"
"""What the fake NVML answers, in a host's root; it may be replaced while daemons run."""
HERE = Path(__file__).parent
FAKE = HERE.parents[1] / "support" / "fakenvml"
_SLOTS = """[Unit]
Description=GPUs in the slots of a test host
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount --bind /srv/slots /sys/bus/pci/devices
[Install]
WantedBy=sysinit.target
"""


def machine() -> str:
    """The state of two RTX A6000 under the stub driver."""
    text = (FAKE / "machines" / "a6000-pair.conf").read_text()
    return re.sub(r"(?m)^-1 driver .*$", f"-1 driver {DRIVER}", text)


def facts() -> list[dict[str, str]]:
    """UUID, PCI address as sysfs writes it, minor and name of each GPU, by index."""
    found: dict[int, dict[str, str]] = {}
    for index, key, value in re.findall(r"(?m)^(\d+) (uuid|pci|minor|name) (.*)$", machine()):
        found.setdefault(int(index), {})[key] = value.removeprefix("0000") if key == "pci" else value
    return [found[index] for index in sorted(found)]


def plug_in(root: Path) -> None:
    """Put two GPUs into the slots of the host whose root file system is `root`; before it boots."""
    for gpu in facts():
        slot = root / "srv/slots" / gpu["pci"]
        slot.mkdir(parents=True)
        for name, value in {"vendor": "0x10de", "class": "0x030000", "numa_node": "-1"}.items():
            (slot / name).write_text(f"{value}\n")
    unit = root / "etc/systemd/system/gpu-slots.service"
    unit.write_text(_SLOTS)
    wants = root / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / unit.name).symlink_to(f"../{unit.name}")


def publish_stubs(folder: Path) -> None:
    """Repositories ``nvidia`` and ``grafana`` in `folder`."""
    publish(folder / "nvidia", [_driver(folder), _plain("nvidia-modprobe"), _plain("cuda-toolkit-12-9")])
    publish(folder / "grafana", [_grafana(), _alloy()])


def _plain(name: str) -> Package:
    return Package(name, DRIVER, {f"/usr/share/{name}/stub": b"\n"})


def _driver(folder: Path) -> Package:
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so"
    compiler = ["gcc", "-shared", "-fPIC", "-O2", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(library)]
    subprocess.run([*compiler, str(FAKE / "fakenvml.c")], check=True, capture_output=True)
    files = {
        f"/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{DRIVER}": library.read_bytes(),
        f"/{STATE}": machine().encode(),
        "/usr/lib/stub-nvidia/load": (HERE / "stubs/load-driver").read_bytes(),
        "/usr/bin/nvidia-smi": b'#!/bin/sh\necho "stub nvidia-smi $*" >>/var/log/nvidia-smi\n',
        "/usr/share/stub-nvidia/driver/nvidia/version": f"NVRM version: Module  {DRIVER}\n".encode(),
    }
    library.unlink()
    for gpu in facts():
        about = f"Model: {gpu['name']}\nGPU UUID: {gpu['uuid']}\nDevice Minor: {gpu['minor']}\n"
        files[f"/usr/share/stub-nvidia/driver/nvidia/gpus/{gpu['pci']}/information"] = about.encode()
    for unit, text in _driver_units().items():
        files[f"/usr/lib/systemd/system/{unit}"] = text.encode()
    links = {
        "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1": f"libnvidia-ml.so.{DRIVER}",
        "/usr/lib/systemd/system/sysinit.target.wants/stub-nvidia.service": "../stub-nvidia.service",
    }
    return Package("nvidia-open-580", DRIVER, files, links, postinst="ldconfig")


def _driver_units() -> dict[str, str]:
    nvml = f"[Service]\nEnvironment=FAKE_NVML=/{STATE}\n"
    return {
        # What stands for the modules is loaded at boot only, as where an older module is in use.
        "stub-nvidia.service": (
            "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target systemd-modules-load.service\n"
            "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/lib/stub-nvidia/load\n"
        ),
        "nvidia-persistenced.service": (
            "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
        ),
        "llm-gpu-exporter.service.d/stub.conf": nvml,
        "llm-engine@.service.d/stub.conf": nvml,
        # Its own /proc is a fresh one.
        "llm-gpu-nodes.service.d/stub.conf": (
            "[Service]\nBindReadOnlyPaths=/run/stub-nvidia/devices:/proc/devices "
            "/usr/share/stub-nvidia/driver:/proc/driver\n"
        ),
    }


def _alloy() -> Package:
    unit = (
        "[Service]\nUser=alloy\nExecStart=/usr/bin/alloy run /etc/alloy/config.alloy\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    files = {
        "/usr/bin/alloy": (HERE / "stubs/alloy").read_bytes(),
        "/etc/alloy/config.alloy": b"// The package's own.\n",
        "/usr/lib/systemd/system/alloy.service": unit.encode(),
    }
    user = "getent passwd alloy >/dev/null || useradd --system --no-create-home alloy"
    return Package("alloy", ALLOY, files, depends=("python3",), postinst=user)


def _grafana() -> Package:
    unit = (
        "[Service]\nUser=grafana\nExecStart=/usr/share/grafana/serve\n[Install]\nWantedBy=multi-user.target\n"
    )
    files = {
        "/usr/share/grafana/serve": (HERE / "stubs/serve-grafana").read_bytes(),
        "/usr/lib/systemd/system/grafana-server.service": unit.encode(),
    }
    user = "getent passwd grafana >/dev/null || useradd --system --no-create-home grafana"
    return Package("grafana", GRAFANA, files, depends=("python3",), postinst=user)
