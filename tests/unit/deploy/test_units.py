"""The unit files as they are installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.deploy import units

DAEMONS = ["llm-gateway.service", "llm-engine@.service", "llm-gpu-exporter.service"]
CEILINGS = {
    "llm-engine@.service": 2.0,
    "llm-gpu-exporter.service": 1.7,
    "llm-gateway.service": 1.5,
    "llm-gpu-nodes.service": 2.3,
    "llm-model@.service": 2.3,
    "llm-firewall.service": 2.3,
    "llm-certificates.service": 1.0,
}
"""Highest exposure that ``systemd-analyze security`` may find."""

analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze not found: apt-get install systemd"
)


@pytest.mark.parametrize("name", units.names())
def test_every_directive_is_known_to_systemd_249(name: str) -> None:
    known = units.known_to_249()
    unit = units.read(name)
    used = {f"{section}.{key}" for section, keys in unit.sections.items() for key in keys}
    assert used - known == set()


def test_the_directive_list_is_that_of_249() -> None:
    known = units.known_to_249()
    assert {"Service.LoadCredential", "Service.ProtectProc", "Service.SocketBindDeny"} <= known
    newer = {
        "Service.LoadCredentialEncrypted",
        "Service.RestartSteps",
        "Service.OpenFile",
        "Service.ExitType",
    }
    assert not newer & known


def test_every_unit_with_a_ceiling_exists_and_the_other_way_round() -> None:
    assert set(CEILINGS) == set(units.names(".service"))


@pytest.mark.parametrize("name", DAEMONS)
def test_daemons_notify_and_are_watched(name: str) -> None:
    unit = units.read(name)
    assert unit.one("Service", "Type") == "notify"
    assert unit.seconds("Service", "WatchdogSec") <= 30
    assert unit.seconds("Service", "TimeoutAbortSec") <= 10
    assert unit.one("Service", "Restart") == "always"
    assert unit.one("Service", "RestartPreventExitStatus") == "78"


@pytest.mark.parametrize("name", DAEMONS)
def test_start_limits_can_trip(name: str) -> None:
    unit = units.read(name)
    longest = unit.seconds("Service", "RestartSec") + max(
        unit.seconds("Service", "TimeoutStartSec"),
        unit.seconds("Service", "WatchdogSec") + unit.seconds("Service", "TimeoutAbortSec"),
    )
    assert unit.seconds("Unit", "StartLimitIntervalSec") > longest * int(unit.one("Unit", "StartLimitBurst"))


# The firewall stays up while the service is stopped.
@pytest.mark.parametrize("name", sorted({*units.names(".service")} - {"llm-firewall.service"}))
def test_services_belong_to_the_target(name: str) -> None:
    unit = units.read(name)
    assert unit.one("Unit", "PartOf") == "llm.target"


def test_an_engine_opens_no_gpu_without_its_drop_in() -> None:
    unit = units.read("llm-engine@.service")
    assert unit.one("Service", "DevicePolicy") == "closed"
    assert unit.all("Service", "DeviceAllow") == ["/dev/char/195:255 rw", "char-nvidia-uvm rw"]


def test_only_the_downloader_is_given_the_hub_token() -> None:
    holders = [
        name
        for name in units.names(".service")
        if any("hf-token" in value for value in units.read(name).all("Service", "LoadCredential"))
    ]
    assert holders == ["llm-model@.service"]


def test_monitoring_is_protected_from_the_engines() -> None:
    assert units.read("llm-monitoring.slice").one("Slice", "MemoryMin") == "2G"
    assert units.read("llm-engines.slice").one("Slice", "MemoryMax").endswith("%")
    total = sum(
        int(units.read(name).one("Slice", "MemoryMin").rstrip("G"))
        for name in ("llm-monitoring.slice", "llm-serving.slice")
    )
    assert int(units.read("llm.slice").one("Slice", "MemoryMin").rstrip("G")) >= total


def test_oom_prefers_engines() -> None:
    score = {name: int(units.read(name).one("Service", "OOMScoreAdjust")) for name in (*DAEMONS,)}
    assert score["llm-engine@.service"] > score["llm-gateway.service"]
    assert score["llm-engine@.service"] > score["llm-gpu-exporter.service"]


def _instances(folder: Path) -> None:
    """The units in `folder` with templates instantiated and programs that exist in place of ours."""
    for name in units.names():
        text = (units.SYSTEMD / name).read_text()
        text = re.sub(r"^(Exec\w+=)/(?:opt|usr/local|usr/sbin)/\S+", r"\1/bin/true", text, flags=re.MULTILINE)
        (folder / name.replace("@.", "@x.")).write_text(text)


@analyze
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    _instances(tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "llm" in line]
    assert (complaints, done.returncode) == ([], 0)


@analyze
@pytest.mark.parametrize(("name", "ceiling"), CEILINGS.items())
def test_exposure_stays_under_its_ceiling(name: str, ceiling: float, tmp_path: Path) -> None:
    _instances(tmp_path)
    file = tmp_path / name.replace("@.", "@x.")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) <= ceiling
