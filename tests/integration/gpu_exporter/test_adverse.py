"""What an exporter meets that is left alone for years: strange strings, killers, neighbours, slow clients."""

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

TEMPERATURE = "gpu_temperature_celsius{"
SUCCESS = "gpu_exporter_collection_success"


def descriptors(exporter: Any) -> int:
    return len(list(Path(f"/proc/{exporter.process.pid}/fd").iterdir()))


def test_strings_that_are_no_text_or_need_quotes(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("a6000-pair")
    text = machine.path.read_bytes()
    text = text.replace(b"0 vbios 94.02.5C.00.02", b"0 vbios \xff\xfe\x80")
    text = text.replace(b"1 name NVIDIA RTX A6000", b'1 name a"b\\c{x="1"} ' + b"\xc3\xa9" * 20)
    machine.path.write_bytes(text)
    exporter = start()
    exporter.until(lambda: exporter.value("gpu_present") == 2, "both GPUs")
    families = {family.name: family for family in text_string_to_metric_families(exporter.scrape())}
    labels = [sample.labels for sample in families["gpu_info"].samples]
    assert labels[0]["vbios"] == ""
    assert labels[1]["name"] == 'a"b\\c{x="1"} ' + "é" * 20
    assert exporter.value('gpu_exporter_collector_errors_total{collector="info",error="not_text"') >= 1


def test_a_worker_that_is_killed_again_and_again_leaves_nothing(
    machine: Any, start: Callable[..., Any]
) -> None:
    machine.use("h100")
    exporter = start()
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")
    before = descriptors(exporter)
    for _ in range(4):
        exporter.until(exporter.workers, "a worker")
        (worker,) = exporter.workers()
        os.kill(worker, signal.SIGKILL)
        exporter.until(lambda worker=worker: exporter.workers() not in ([], [worker]), "the next")
    exporter.until(lambda: exporter.value(SUCCESS) == 1, "recovery")
    assert len(exporter.workers()) == 1
    exporter.until(lambda: descriptors(exporter) <= before, "an end of what it has open")
    assert "SIGKILL" in exporter.log.read_text(), "why the worker ended is in the log"


def test_a_library_that_appears_later_is_found(
    machine: Any, start: Callable[..., Any], tmp_path: Path
) -> None:
    machine.use("h100")
    whole, folder = machine.library, tmp_path / "lib"
    folder.mkdir()
    machine.library = folder / whole.name
    exporter = start()
    exporter.until(lambda: exporter.value('gpu_exporter_nvml_state{state="no_library"}') == 1, "the absence")
    (folder / whole.name).write_bytes(whole.read_bytes())
    exporter.until(lambda: exporter.value(TEMPERATURE) is not None, "data")


def test_two_exporters_on_one_port(machine: Any, start: Callable[..., Any], tmp_path: Path) -> None:
    machine.use("no-gpu")
    exporter = start()
    config = tmp_path / "second.yaml"
    config.write_text(f"listen: {{port: {exporter.port}}}\n")
    second = subprocess.run(
        [sys.executable, "-m", "daemons.gpu_exporter", "--config", str(config)],
        env=os.environ | machine.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert second.returncode == 1
    assert f"127.0.0.1:{exporter.port} is already in use" in second.stderr
    assert exporter.value("gpu_present") is not None or exporter.process.poll() is None


def test_requests_other_than_a_scrape(machine: Any, start: Callable[..., Any]) -> None:
    machine.use("no-gpu")
    exporter = start()
    asked = (
        ("HEAD", "/metrics", 200),
        ("POST", "/metrics", 405),
        ("GET", "/", 200),
        ("GET", "/metrics/x", 404),
    )
    for method, path, status in asked:
        connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=30)
        connection.request(method, path)
        assert connection.getresponse().status == status, (method, path)
        connection.close()


def test_clients_that_are_slow_or_do_not_read(machine: Any, start: Callable[..., Any]) -> None:
    """Each asks many times and reads nothing, or sends half a request; a scrape is answered all the same."""
    machine.eight()
    exporter = start()
    exporter.until(lambda: exporter.value("gpu_present") == 8, "eight GPUs")
    idle = []
    for number in range(100):
        client = socket.create_connection(("127.0.0.1", exporter.port), timeout=30)
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20
        client.sendall(request if number % 2 else b"GET /met")
        idle.append(client)
    assert exporter.value("gpu_present") == 8
    pages = int(Path(f"/proc/{exporter.process.pid}/statm").read_text().split()[1])
    for client in idle:
        client.close()
    assert pages * os.sysconf("SC_PAGE_SIZE") < 200_000_000, "what nobody reads is not rendered"
    assert exporter.value("gpu_present") == 8
