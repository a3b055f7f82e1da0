"""A running ``llm-engine`` as tests see it: its sockets, its log, what it tells its service manager."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ports import free_port

PROJECT = Path(__file__).parents[3]
FAKE = PROJECT / "tests" / "support" / "fake_vllm.py"
PATIENCE = 60.0


def wait_for(what: Callable[[], Any], within: float = PATIENCE, poll: float = 0.05) -> Any:
    """The first true value of `what`; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(poll)
    raise AssertionError(f"waited {within} s in vain")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(path: Path, method: str, url: str, body: Any = None, timeout: float = 30) -> tuple[int, str]:
    """One HTTP request over a unix socket."""
    connection = _UnixConnection(path, timeout)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, url, data, {"Content-Type": "application/json"} if data else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class EngineUnderTest:
    """One ``llm-engine`` process."""

    def __init__(self, folder: Path, settings: dict[str, Any], stack: ExitStack) -> None:
        self.run = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-")))
        self.config = folder / "engine.yaml"
        self.state_dir = folder / "state"
        defaults = {
            "served_names": ["m"],
            "gpus": [],
            "metrics": {"host": "127.0.0.1", "port": free_port()},
            "runtime_dir": str(self.run),
            "cache_dir": str(folder / "cache"),
            "state_dir": str(self.state_dir),
        }
        self.settings = defaults | settings
        self.config.write_text(yaml.safe_dump(self.settings))
        self.log_file = folder / "log.jsonl"
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(self.run / "notify"))
        self._told: list[str] = []
        listening = threading.Thread(target=self._listen, daemon=True)
        listening.start()
        stack.callback(self._hang_up, listening)
        log = stack.enter_context(self.log_file.open("w"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemons.engine", "engine", "--config", str(self.config)],
            stderr=log,
            env=os.environ | {"NOTIFY_SOCKET": str(self.run / "notify")},
            cwd=PROJECT,
        )
        stack.callback(self.end)

    def end(self) -> None:
        """End it whatever it does."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(signum)
                try:
                    self.process.wait(20)
                except subprocess.TimeoutExpired:
                    continue

    def notifications(self) -> list[str]:
        """Everything it told its service manager."""
        return list(self._told)

    def _listen(self) -> None:
        # A manager that does not listen would block the daemon: the queue of a datagram socket is short.
        while message := self._manager.recv(4096):
            self._told.append(message.decode())

    def _hang_up(self, listening: threading.Thread) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.run / "notify"))
        listening.join(5)
        self._manager.close()

    def ready(self) -> bool:
        """Whether it sent READY."""
        if self.process.poll() is not None:
            raise AssertionError(f"it ended: {self.log()[-5:]}")
        return any("READY=1" in message for message in self.notifications())

    def log(self) -> list[dict[str, Any]]:
        """Its log records."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]

    def messages(self) -> list[str]:
        """Its log messages."""
        return [str(record["event"]) for record in self.log()]

    def state(self, query: str = "") -> dict[str, Any]:
        """The answer to ``GET /state``; empty when nobody answers."""
        try:
            _, body = ask(self.run / "control.sock", "GET", f"/state{query}")
        except OSError:
            return {}
        answer: dict[str, Any] = json.loads(body)
        return answer

    def is_ready(self, generation: int) -> bool:
        """Whether it is ready in its `generation`-th start."""
        state = self.state()
        return state.get("state") == "ready" and state["generation"] == generation

    def api(self, method: str, url: str, body: Any = None, timeout: float = 30) -> tuple[int, str]:
        """A request to vLLM itself."""
        return ask(self.run / "api.sock", method, url, body, timeout)

    def metrics(self) -> str:
        """Its exposition."""
        connection = http.client.HTTPConnection("127.0.0.1", self.settings["metrics"]["port"], timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return text


Launcher = Callable[..., EngineUnderTest]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder whose fake engine works."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "fake.json").write_text('{"mode": "works"}')
    return folder


@pytest.fixture
def engine(tmp_path: Path, model: Path) -> Iterator[Launcher]:
    """Starts engines on the fake vLLM: ``engine(mode, **settings)``."""
    with ExitStack() as stack:

        def launch(mode: str = "works", **settings: Any) -> EngineUnderTest:
            (model / "fake.json").write_text(json.dumps({"mode": mode}))
            return EngineUnderTest(
                tmp_path, {"model": str(model), "vllm": [sys.executable, str(FAKE)]} | settings, stack
            )

        yield launch


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
