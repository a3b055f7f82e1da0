"""The whole page of recorded machines, the frozen names, and what promtool says of them.

``UPDATE_GOLDEN=1`` writes the files anew; review the difference, since names and labels are a contract.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from daemons.gpu_exporter import collection, collectors, inventory, page, xid_counts
from daemons.gpu_exporter.collection import Collection
from daemons.gpu_exporter.families import Family
from daemons.gpu_exporter.nvml import open_nvml
from daemons.gpu_exporter.page import Page
from daemons.gpu_exporter.settings import GpuExporterSettings
from daemons.gpu_exporter.xid_counts import Source

GOLDEN = Path(__file__).parent / "golden"
MACHINES = ("a6000-pair", "h100", "geforce", "no-gpu")
EXPECTED = {"a6000-pair": 2, "h100": 1, "geforce": 1, "no-gpu": None}


def rendered(unit_of: Callable[[int], str], *, dcgm: bool = False, expected: int | None = None) -> str:
    nvml = open_nvml()
    try:
        standard = collectors.standard(unit_of, 32)
        taken = Collection(nvml, standard, 10.0, dcgm_names=dcgm, clock=lambda: 100.0).take()
    finally:
        nvml.close()
    settings = GpuExporterSettings(expected_gpus=expected, dcgm_names=dcgm)
    shown = Page(settings, CollectorRegistry(), clock=lambda: 100.25)
    shown.xids.active(Source.KERNEL, True)
    shown.snapshot(msgspec.structs.replace(taken, taken_at=1_700_000_000.0))
    return shown.render({})[0].decode()


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs; UPDATE_GOLDEN=1 writes it anew"


@pytest.mark.parametrize("name", MACHINES)
def test_page_of_a_recorded_machine(inside: Any, unit_of: Callable[[int], str], name: str) -> None:
    inside.use(name)
    compare(f"{name}.prom", rendered(unit_of, expected=EXPECTED[name]))


def test_dcgm_names_are_served_alongside(
    inside: Any, unit_of: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-host")
    inside.use("a6000-pair")
    text = rendered(unit_of, dcgm=True)
    compare("a6000-pair-dcgm.prom", "".join(part for part in text.splitlines(True) if "DCGM_FI_" in part))
    assert "gpu_utilization_ratio" in text


def test_names_are_frozen() -> None:
    families = [family for collector in collectors.standard(str, 1) for family in collector.families]
    for module in (collection, inventory, page, xid_counts):
        families += [value for value in vars(module).values() if isinstance(value, Family)]
    assert len({family.name for family in families}) == len(set(families))
    lines = sorted({f"{family.name} {family.kind}\n" for family in families})
    compare("names.txt", "".join(lines))


@pytest.mark.parametrize("name", MACHINES)
def test_unsupported_is_absent_and_said_to_be(inside: Any, unit_of: Callable[[int], str], name: str) -> None:
    inside.use(name)
    families = {family.name: family for family in text_string_to_metric_families(rendered(unit_of))}
    present = {sample.name for family in families.values() for sample in family.samples}
    if "gpu_exporter_field_supported" not in families:
        assert name == "no-gpu"
        return
    for sample in families["gpu_exporter_field_supported"].samples:
        assert (sample.labels["field"] in present) == bool(sample.value), sample


def test_instances_of_a_split_gpu(inside: Any, unit_of: Callable[[int], str]) -> None:
    """Three MIG devices in two GPU instances: memory is told once an instance, so that it can be summed."""
    inside.use("h100")
    inside.remove("0 mig 0 0")
    inside.remove("0 utilization")
    for device, (instance, compute) in enumerate(((1, 0), (1, 1), (2, 0))):
        inside.add(
            f"0 mig{device}.uuid MIG-0000010{device}",
            f"0 mig{device}.name NVIDIA H100 80GB HBM3 MIG 3g.40gb",
            f"0 mig{device}.instance {instance}",
            f"0 mig{device}.compute {compute}",
            f"0 mig{device}.memory 42000000000 {instance}000000000",
        )
    inside.add("0 mig 1 1")
    text = rendered(unit_of)
    compare("h100-mig.prom", "".join(part for part in text.splitlines(True) if "gpu_mig_" in part))
    assert "gpu_utilization_ratio{" not in text


def test_geforce_has_no_ecc_series(inside: Any, unit_of: Callable[[int], str]) -> None:
    inside.use("geforce")
    assert not [
        line for line in rendered(unit_of).splitlines() if line.startswith(("gpu_ecc", "gpu_remapped"))
    ]


@pytest.mark.parametrize("name", MACHINES)
def test_promtool_finds_no_fault(inside: Any, unit_of: Callable[[int], str], name: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: the metric names are not linted (apt-get install prometheus)")
    inside.use(name)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=rendered(unit_of), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
