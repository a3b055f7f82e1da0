"""What a deployment learns of a host, from files as a driver and a kernel lay them out."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.deploy.units import REPO

INFORMATION = """Model: \t\t NVIDIA RTX A6000
IRQ:   \t\t 170
GPU UUID: \t GPU-{uuid}
Video BIOS: \t 94.02.5c.00.06
Bus Location: \t {pci}
Device Minor: \t {minor}
GPU Excluded:\t No
"""


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    """The script that Ansible runs on hosts."""
    spec = importlib.util.spec_from_file_location("host_probe", REPO / "ansible/files/host_probe.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gpu(root: Path, pci: str, uuid: str, minor: int, node: str, cpus: str) -> None:
    """Lay out one GPU below `root`."""
    driver = root / "proc/driver/nvidia/gpus" / pci
    driver.mkdir(parents=True)
    (driver / "information").write_text(INFORMATION.format(uuid=uuid, pci=pci, minor=minor))
    device = root / "sys/bus/pci/devices" / pci
    device.mkdir(parents=True)
    for name, value in {
        "numa_node": node,
        "local_cpulist": cpus,
        "vendor": "0x10de",
        "class": "0x030000",
    }.items():
        (device / name).write_text(f"{value}\n")


def test_the_index_follows_the_pci_order_and_the_minor_need_not(probe: ModuleType, tmp_path: Path) -> None:
    gpu(tmp_path, "0000:c1:00.0", "b", 0, "1", "16-31,48-63")
    gpu(tmp_path, "0000:41:00.0", "a", 1, "0", "0-15,32-47")
    found = probe.driver_gpus(tmp_path / "proc", tmp_path / "sys")
    assert [(one["index"], one["uuid"], one["minor"], one["numa_node"]) for one in found] == [
        (0, "GPU-a", 1, 0),
        (1, "GPU-b", 0, 1),
    ]
    assert found[0]["cpus"] == "0-15,32-47"
    assert found[0]["model"] == "NVIDIA RTX A6000"


def test_a_host_without_numa_names_no_node(probe: ModuleType, tmp_path: Path) -> None:
    gpu(tmp_path, "0000:01:00.0", "a", 0, "-1", "0-7")
    assert probe.driver_gpus(tmp_path / "proc", tmp_path / "sys")[0]["numa_node"] is None


def test_gpus_are_found_without_a_driver(probe: ModuleType, tmp_path: Path) -> None:
    gpu(tmp_path, "0000:01:00.0", "a", 0, "-1", "0-7")
    assert probe.pci_gpus(tmp_path / "sys") == ["0000:01:00.0"]


def test_a_host_without_anything_is_no_error(probe: ModuleType, tmp_path: Path) -> None:
    found = probe.probe(str(tmp_path / "models"), str(tmp_path), str(tmp_path))
    assert (found["gpus"], found["pci_gpus"], found["driver"], found["listeners"]) == ([], [], None, {})
    assert found["models_disk"]["folder"] == str(tmp_path)


def test_long_pci_domains_are_those_of_sysfs(probe: ModuleType) -> None:
    assert probe.normal("00000000:C1:00.0") == "0000:c1:00.0"
