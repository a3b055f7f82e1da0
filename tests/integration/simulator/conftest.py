"""A simulator as a real process."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.simulator.exchanges import Case, ask

PROJECT = Path(__file__).parents[3]
PATIENCE = 60.0
CHAT = "/v1/chat/completions"


def wait_for(what: Callable[[], Any], within: float = PATIENCE) -> Any:
    """The first true value of `what`; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {within} s in vain")


class Simulator:
    """A process, its output, its port."""

    patience = PATIENCE

    def __init__(self, *flags: str, model: str = "m") -> None:
        self._begin([sys.executable, "-m", "daemons.simulator", "serve", model, *flags], None)

    def _begin(self, command: list[str], environment: dict[str, str] | None) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def output(self) -> str:
        """All it has written."""
        return "".join(self.lines)

    def until_serving(self) -> "Simulator":
        """Wait for the last line of a start."""

        def serving() -> bool:
            assert self.process.poll() is None, self.output
            return "Application startup complete" in self.output

        wait_for(serving, self.patience)
        return self

    @property
    def port(self) -> int:
        """Its TCP port, as logged."""
        found = re.search(r"Starting vLLM server on http://\S+:(\d+)", self.output)
        assert found, self.output
        return int(found[1])

    def ask(self, path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, Any]:
        """Status and decoded body of one request."""
        case = Case("", path, body, method or ("GET" if body is None else "POST"), headers)
        status, answered, data = ask(self.port, case)
        return status, json.loads(data) if data and "json" in answered["Content-Type"] else data.decode()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of ``/metrics``."""
        return read_metric(str(self.ask("/metrics")[1]), name, **labels)

    def end(self) -> int:
        """SIGTERM, and its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Its exit status."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def read_metric(page: str, name: str, **labels: str) -> float:
    """The value of one sample on `page`."""
    for line in page.splitlines():
        if re.match(rf"{re.escape(name)}[{{ ]", line) and all(
            f'{k}="{v}"' in line for k, v in labels.items()
        ):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no {name} {labels}")


Start = Callable[..., Simulator]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts simulators, on free ports and without a start-up time unless told otherwise."""
    with contextlib.ExitStack() as stack:

        def begin(*flags: str, model: str = "m", serving: bool = True) -> Simulator:
            given = [*flags]
            if "--uds" not in given and "--port" not in given:
                given += ["--host", "127.0.0.1", "--port", "0"]
            if "--sim-startup-seconds" not in given:
                given += ["--sim-startup-seconds", "0"]
            made = Simulator(*given, model=model)
            stack.callback(made.close)
            return made.until_serving() if serving else made

        yield begin


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """One simulator for tests that leave it as it was."""
    made = Simulator(
        "--host", "127.0.0.1", "--port", "0", "--sim-startup-seconds", "0", "--sim-inter-token-ms", "2"
    )
    try:
        yield made.until_serving()
    finally:
        made.close()
