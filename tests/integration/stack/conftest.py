"""A whole stack as `llmctl up` runs it, one for the tests of a module."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
START_DEADLINE_SEC = 240.0


@dataclass
class Up:
    """A running `llmctl up`."""

    process: "subprocess.Popen[bytes]"
    output: Path
    state: Path

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """The first match of `pattern` in its output."""
        deadline = time.monotonic() + START_DEADLINE_SEC
        while time.monotonic() < deadline:
            found = re.search(pattern, self.text, re.MULTILINE)
            if found:
                return found
            assert self.process.poll() is None, self.text
            time.sleep(0.1)
        raise AssertionError(f"{pattern!r} never came:\n{self.text}")

    @property
    def url(self) -> str:
        """Where the API is, without ``/v1``."""
        return self.wait_for(r"^  URL +(http://\S+)/v1$")[1]

    @property
    def key(self) -> str:
        """The printed key."""
        return self.wait_for(r"^  Key +(sk-\S+)$")[1]

    def processes(self) -> list[int]:
        """Every process that names the folder of the stack."""
        mark = os.fsencode(self.state)
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                try:
                    words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                except OSError:
                    continue
                if mark in words:
                    found.append(int(entry.name))
        return found

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=120)


def start_up(folder: Path, *arguments: str, state: Path | None = None) -> Up:
    """Start `llmctl up` on free ports, with its output, and its state unless it is elsewhere, in `folder`."""
    folder.mkdir(exist_ok=True)
    output, state = folder / "output", state or folder / "state"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemons.llmctl", "up", "--port", "0", "--state", str(state), *arguments],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
        )
    return Up(process, output, state)


def end(up: Up) -> None:
    """End `up` however it is."""
    if up.process.poll() is None:
        up.process.send_signal(signal.SIGINT)
        try:
            up.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            up.process.kill()
            up.process.wait()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A stack on the simulator, ready."""
    up = start_up(tmp_path_factory.mktemp("simulated"), "--engine", "simulator")
    try:
        assert up.url
        yield up
    finally:
        end(up)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A stack on the real vLLM with SmolLM2, ready."""
    up = start_up(tmp_path_factory.mktemp("real"))
    try:
        assert up.url
        yield up
    finally:
        end(up)
