"""The fake NVML library, compiled once, and machines whose state a test changes live."""

import contextlib
import ctypes
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FAKE = Path(__file__).parents[2] / "support" / "fakenvml"
MACHINES = FAKE / "machines"


class FakeMachine:
    """What the fake library says; every change is atomic and takes effect with the next call."""

    def __init__(self, path: Path, library: Path) -> None:
        self.path = path
        self.library = library
        self.lines: list[str] = []

    def use(self, name: str) -> None:
        """Be the recorded machine `name`."""
        self.lines = (MACHINES / f"{name}.conf").read_text().splitlines()
        self._write()

    def eight(self) -> None:
        """Be a machine with eight GPUs, each like the H100, with an engine on each."""
        text = (MACHINES / "h100.conf").read_text().splitlines()
        machine = [line for line in text if line.startswith("-1") and " count " not in line]
        gpu = [line[2:] for line in text if line.startswith("0 ")]
        self.lines = [*machine, "-1 count 8"]
        for index in range(8):
            for line in gpu:
                own = line.replace("-000000000000", f"-{index:012d}").replace(":0F:", f":{index + 16:02X}:")
                self.lines.append(f"{index} {own}")
            self.lines.append(f"{index} compute {os.getpid()} 77309411328")
            self.lines.append(f"{index} busy {os.getpid()} 1700000000000000 96")
        self._write()

    def add(self, *lines: str) -> None:
        """More lines; they come before what is there, so that they win."""
        self.lines = [*lines, *self.lines]
        self._write()

    def remove(self, start: str) -> None:
        """Without the lines that begin so."""
        self.lines = [line for line in self.lines if not line.startswith(start)]
        self._write()

    def _write(self) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text("\n".join(self.lines) + "\n")
        fresh.replace(self.path)

    @property
    def environment(self) -> dict[str, str]:
        """For a process that shall see this machine."""
        return {"FAKE_NVML": str(self.path), "LD_LIBRARY_PATH": str(self.library.parent)}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake ``libnvidia-ml.so.1``."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the fake NVML library cannot be built (apt-get install gcc)")
    out = tmp_path_factory.mktemp("fakenvml") / "libnvidia-ml.so.1"
    source = FAKE / "fakenvml.c"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O2",
        "-Wl,-soname,libnvidia-ml.so.1",
        "-o",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True)
    return out


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> FakeMachine:
    """A machine for processes that a test starts."""
    return FakeMachine(tmp_path / "nvml.conf", library)


@pytest.fixture(scope="session")
def _loaded(library: Path) -> Iterator[ctypes.CDLL]:
    # A library that is loaded already answers for its soname, so the bindings find the fake one.
    return ctypes.CDLL(str(library))


@pytest.fixture
def inside(_loaded: ctypes.CDLL, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """A machine for this very process."""
    monkeypatch.setenv("FAKE_NVML", str(machine.path))
    return machine


@pytest.fixture
def unit_of() -> Callable[[int], str]:
    """Units of the processes on the recorded machines."""
    units = {101: "llm-engine@llama-8b-gpu0.service", 102: "llm-engine@llama-8b-gpu1.service"}
    return lambda pid: units.get(pid, "session.scope")


class Exporter:
    """A running ``llm-gpu-exporter``."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, notify: socket.socket, log: Path) -> None:
        self.process = process
        self.log = log
        self.port = port
        self._notify = notify
        self.messages: list[str] = []

    def scrape(self) -> str:
        """The page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def value(self, series: str) -> float | None:
        """The value of the series that begins so; None when there is none."""
        for line in self.scrape().splitlines():
            if line.startswith(series):
                return float(line.rsplit(" ", 1)[1])
        return None

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for `condition`, for at most a minute."""
        deadline = time.monotonic() + 60
        while not condition():
            self._hear()
            assert self.process.poll() is None, "the exporter ended"
            assert time.monotonic() < deadline, f"{what} did not happen; the page:\n{self.scrape()}"
            time.sleep(0.02)

    def told(self, message: str) -> bool:
        """Whether `message` was sent to the service manager since the last question that it answered."""
        self._hear()
        found = any(message in line for line in self.messages)
        if found:
            self.messages.clear()
        return found

    def _hear(self) -> None:
        """Take what was told: the kernel keeps ten messages, and then the exporter waits."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.messages += self._notify.recv(4096).decode().splitlines()

    def workers(self) -> list[int]:
        """Process ids of its children that run NVML."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        children = [int(pid) for pid in text.split()]
        return [pid for pid in children if b"gpu_exporter.worker" in _command_line(pid)]

    def stop(self) -> None:
        """SIGTERM, and its end."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            self._notify.close()


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def start(machine: FakeMachine, tmp_path: Path) -> Iterator[Callable[..., Exporter]]:
    """Starts an exporter that sees `machine`; keywords are settings."""
    started: list[Exporter] = []

    def begin(watchdog_seconds: float = 0, **settings: object) -> Exporter:
        values: dict[str, object] = {
            "interval": 0.05,
            "slow_interval": 0.2,
            # A busy machine may not run a worker for seconds. Tests of a freeze say how soon it shall show.
            "stale_after": 60.0,
            "worker_timeout": 60.0,
            "start_timeout": 60.0,
            "kernel_log": "off",
            "listen": {"port": 0},
            **settings,
        }
        config = tmp_path / "gpu-exporter.yaml"
        config.write_text(yaml.safe_dump(values))
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(tmp_path / f"notify{len(started)}"))
        notify.setblocking(False)
        environment = os.environ | machine.environment | {"NOTIFY_SOCKET": notify.getsockname()}
        if watchdog_seconds:
            environment["WATCHDOG_USEC"] = str(int(watchdog_seconds * 1e6))
        log = (tmp_path / f"log{len(started)}").open("w+b")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "daemons.gpu_exporter", "--config", str(config)],
                env=environment,
                stderr=log,
                cwd=ROOT,
            )
        exporter = Exporter(process, 0, notify, Path(log.name))
        started.append(exporter)
        _wait_for_port(exporter)
        return exporter

    yield begin
    for exporter in started:
        exporter.stop()


def _wait_for_port(exporter: Exporter) -> None:
    deadline = time.monotonic() + 60
    while not (found := re.search(r'"port":(\d+)', exporter.log.read_text())):
        assert exporter.process.poll() is None, exporter.log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    exporter.port = int(found[1])
