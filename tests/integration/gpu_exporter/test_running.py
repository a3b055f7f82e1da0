"""The exporter as a process, with an NVML that freezes, loses GPUs, disappears and comes back."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

TEMPERATURE = "gpu_temperature_celsius{"
SUCCESS = "gpu_exporter_collection_success"
HUNG = 'gpu_exporter_worker_endings_total{reason="hung"}'
SOON = {"stale_after": 3.0, "worker_timeout": 4.0, "start_timeout": 20.0}
"""When a freeze shows; a busy machine may be taken for one."""


def runs(pid: int) -> bool:
    """Whether `pid` is a process that has not ended; a dead one may wait to be reaped."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def working(exporter: Any) -> int:
    """The worker, once there is one."""
    while not (found := exporter.workers()):
        exporter.until(exporter.workers, "a worker")
    return int(found[0])


def test_serves_and_tells_the_service_manager(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("a6000-pair")
    exporter = start(watchdog_seconds=1, expected_gpus=2)
    exporter.until(lambda: exporter.told("READY=1"), "READY")
    exporter.until(lambda: exporter.value("gpu_present") == 2, "both GPUs")
    assert exporter.value("gpu_expected") == 2
    exporter.until(lambda: exporter.told("WATCHDOG=1"), "the watchdog")
    exporter.stop()
    assert exporter.process.returncode == 0


def test_no_library_is_a_state(machine: Any, start: Callable[..., Any]) -> None:
    machine.library = machine.path
    exporter = start()
    exporter.until(lambda: exporter.told("READY=1"), "READY")
    exporter.until(lambda: exporter.value('gpu_exporter_nvml_state{state="no_library"}') == 1, "the absence")
    assert exporter.value(SUCCESS) == 0
    assert TEMPERATURE not in exporter.scrape()


def test_no_gpu_is_a_state(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("no-gpu")
    exporter = start()
    exporter.until(lambda: exporter.value("gpu_present") == 0, "an answer")
    assert exporter.value(SUCCESS) == 1


def test_frozen_worker(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("a6000-pair")
    exporter = start(watchdog_seconds=1, **SOON)
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")
    frozen = working(exporter)
    machine.add("-1 hang.nvmlDeviceGetTemperature 1")
    exporter.until(lambda: exporter.value(TEMPERATURE) is None, "the gap")
    exporter.until(lambda: exporter.value(SUCCESS) == 0, "the failure")
    exporter.until(lambda: (exporter.value(HUNG) or 0) >= 1, "the replacement")
    exporter.until(lambda: frozen not in exporter.workers(), "the end of the frozen worker")
    assert exporter.value('gpu_exporter_nvml_state{state="ok"}') == 0
    exporter.told("")
    exporter.until(lambda: exporter.told("WATCHDOG=1"), "the watchdog, fed during a hang")
    machine.remove("-1 hang")
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "recovery")
    exporter.until(lambda: exporter.value(SUCCESS) == 1, "success")


def test_a_hung_worker_does_not_outlive_a_killed_exporter(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("h100")
    exporter = start(**SOON)
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")
    worker = working(exporter)
    machine.add("-1 hang.nvmlDeviceGetTemperature 1")
    exporter.until(lambda: exporter.value(SUCCESS) == 0, "the hang")
    hung = exporter.workers() or [worker]
    exporter.process.kill()
    exporter.process.wait()
    deadline = time.monotonic() + 60
    while any(runs(pid) for pid in hung):
        assert time.monotonic() < deadline, "the worker stays"
        time.sleep(0.05)


def test_stopped_worker_is_replaced(machine: Any, start: Callable[..., Any]) -> None:
    """SIGSTOP: the nearest to a process the kernel does not run."""
    machine.use("h100")
    exporter = start(**SOON)
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")
    frozen = working(exporter)
    os.kill(frozen, signal.SIGSTOP)
    exporter.until(lambda: frozen not in exporter.workers() and exporter.value(TEMPERATURE), "recovery")
    assert (exporter.value(HUNG) or 0) >= 1


def test_killed_worker_is_replaced(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("h100")
    exporter = start()
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")
    (killed,) = exporter.workers()
    os.kill(killed, signal.SIGKILL)
    exporter.until(lambda: exporter.workers() not in ([], [killed]), "a new worker")
    exporter.until(lambda: exporter.value(SUCCESS) == 1, "recovery")


def test_lost_gpu_is_visible_and_only_it_is_gone(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("a6000-pair")
    exporter = start(expected_gpus=2)
    exporter.until(lambda: exporter.value("gpu_present") == 2, "both GPUs")
    machine.add("1 lost 1")
    exporter.until(lambda: exporter.value('gpu_up{gpu="1"') == 0, "the loss")
    page = exporter.scrape()
    assert 'gpu_fault{gpu="1",uuid="GPU-0000a600-0000-4000-8000-000000000001",reason="lost"} 1' in page
    assert 'gpu_temperature_celsius{gpu="1"' not in page
    assert 'gpu_temperature_celsius{gpu="0"' in page
    machine.remove("1 lost")
    exporter.until(lambda: exporter.value('gpu_up{gpu="1"') == 1, "its return")


def test_gpu_missing_after_enumeration_stays_visible(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("a6000-pair")
    exporter = start()
    exporter.until(lambda: exporter.value("gpu_present") == 2, "both GPUs")
    machine.remove("-1 count")
    machine.add("-1 count 1")
    exporter.until(lambda: exporter.value('gpu_fault{gpu="1"') == 1, "the missing GPU")
    assert exporter.value('gpu_up{gpu="1"') == 0


def test_reload_releases_nvml(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("h100")
    exporter = start(release_hold=600)
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")
    exporter.until(lambda: exporter.told("READY=1"), "READY")
    exporter.process.send_signal(signal.SIGHUP)
    exporter.until(lambda: exporter.told("READY=1"), "the end of the reload")
    assert exporter.workers() == []
    assert exporter.value('gpu_exporter_nvml_state{state="released"}') == 1
    assert exporter.value(TEMPERATURE) is None


def test_after_the_hold_of_a_reload_a_fresh_worker_delivers(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("h100")
    exporter = start(release_hold=0.1)
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")
    exporter.until(lambda: exporter.told("READY=1"), "READY")
    former = working(exporter)
    exporter.process.send_signal(signal.SIGHUP)
    exporter.until(lambda: exporter.told("READY=1"), "the end of the reload")
    assert former not in exporter.workers()
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data after the hold")


def test_reload_with_a_broken_file_keeps_the_old_settings(
    machine: Any, start: Callable[..., Any], tmp_path: Any
) -> None:
    machine.use("h100")
    exporter = start()
    exporter.until(lambda: exporter.told("READY=1"), "READY")
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")
    (tmp_path / "gpu-exporter.yaml").write_text("interval: never\n")
    exporter.process.send_signal(signal.SIGHUP)
    exporter.until(lambda: exporter.told("STATUS=reload refused"), "the refusal")
    assert exporter.value(TEMPERATURE) is not None


def test_survives_a_driver_reload(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("h100")
    exporter = start()
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")
    machine.add("-1 error.nvmlDeviceGetCount_v2 9", "-1 error.nvmlInitWithFlags 9")
    exporter.until(lambda: exporter.value('gpu_exporter_nvml_state{state="no_driver"}') == 1, "no driver")
    assert exporter.value(TEMPERATURE) is None
    assert exporter.value("gpu_present") is None
    machine.use("h100")
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data from the new driver")


def test_driver_newer_than_the_library_needs_a_fresh_process(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("h100")
    machine.add("-1 error.nvmlInitWithFlags 18")
    exporter = start()
    exporter.until(
        lambda: exporter.value('gpu_exporter_nvml_state{state="version_mismatch"}') == 1, "mismatch"
    )
    # The last to have met the fault may be gone: whichever runs meets it too, and has to go.
    old = working(exporter)
    exporter.until(lambda: old not in exporter.workers(), "the end of a process with the former library")
    machine.remove("-1 error")
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")


def test_xid_events_are_counted_and_outlive_the_worker(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("a6000-pair")
    exporter = start()
    uuid = "GPU-0000a600-0000-4000-8000-000000000000"
    series = f'gpu_xid_errors_total{{gpu="0",uuid="{uuid}",pci_bus_id="00000000:3b:00.0"'
    exporter.until(lambda: exporter.value(f'{series},xid="79"}}') == 0, "the zero before the first")
    machine.lines += ["0 xid 31", "0 xid 31"]
    machine.add("0 xid 79")
    exporter.until(lambda: exporter.value(f'{series},xid="31"}}') == 2, "two events")
    assert exporter.value(f'{series},xid="79"}}') == 1
    seen = exporter.value(series.replace("errors_total", "last_timestamp_seconds") + ',xid="31"}')
    assert seen is not None
    assert abs(seen - time.time()) < 60
    machine.remove("0 xid")
    (worker,) = exporter.workers()
    os.kill(worker, signal.SIGKILL)
    exporter.until(lambda: exporter.workers() not in ([], [worker]), "a new worker")
    assert exporter.value(f'{series},xid="31"}}') == 2


def test_processes_are_joined_to_their_unit(machine: Any, start: Callable[..., Any]) -> None:
    """This process is in no unit or in one; either way the series carry a unit and no process id."""
    machine.use("h100")
    machine.add(f"0 compute {os.getpid()} 1073741824", "0 compute 4194305 4096")
    exporter = start()
    exporter.until(lambda: exporter.value("gpu_unit_processes{") is not None, "processes")
    families = {family.name: family for family in text_string_to_metric_families(exporter.scrape())}
    used = {s.labels["unit"]: s.value for s in families["gpu_unit_memory_used_bytes"].samples}
    assert sum(used.values()) == 1073741824 + 4096
    assert used["unknown"] == 4096
    assert all("pid" not in s.labels for family in families.values() for s in family.samples)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("interval: never\n", "interval"),
        ("intervall: 1\n", "intervall"),
        ("interval: 10\nstale_after: 5\n", "stale_after"),
        ("expected_gpus: -1\n", "expected_gpus"),
        ("expected_gpus: true\n", "expected_gpus"),
        ("expected_gpus: ['']\n", "expected_gpus"),
        ("expected_gpus: [GPU-a, gpu-A]\n", "twice"),
    ],
)
def test_check_names_every_fault(
    tmp_path: Any, capfd: pytest.CaptureFixture[str], text: str, fault: str
) -> None:
    from daemons.gpu_exporter.__main__ import main

    config = tmp_path / "gpu-exporter.yaml"
    config.write_text(text)
    assert main(["--config", str(config), "--check"]) == 78
    assert fault in capfd.readouterr().err
    config.write_text("")
    assert main(["--config", str(config), "--check"]) == 0
