"""The daemon contract as a service manager sees it, with real processes, signals and datagrams."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_DAEMON = """
import asyncio, sys
from daemons.runtime import cli, lifecycle
from daemons.runtime.errors import Fatal

class Example(lifecycle.Daemon):
    reloads = 0
    async def start(self):
        if MODE == "refuse": raise Fatal("the port is taken", 78)
        if MODE == "slow": await asyncio.Event().wait()
        return "serving"
    async def run(self):
        if MODE == "end": return
        if MODE == "crash": raise RuntimeError("bug")
        await asyncio.Event().wait()
    async def reload(self):
        self.reloads += 1
        if self.reloads == 1: raise Fatal("gateway.yaml:3: listen: expected a port", 78)
        return "serving again"
    async def stop(self):
        print("stopped", flush=True)
    def progressing(self):
        return MODE != "stuck"

MODE = sys.argv[1]
sys.exit(cli.guard("example", "info", lambda: lifecycle.run(Example())))
"""


class _Manager:
    """Receives a daemon's notifications."""

    def __init__(self, sock: socket.socket, process: "subprocess.Popen[str]") -> None:
        self._sock, self.process = sock, process

    def next(self) -> dict[str, str]:
        text = self._sock.recv(4096).decode()
        return dict(line.partition("=")[::2] for line in text.splitlines())

    def until(self, key: str) -> dict[str, str]:
        while key not in (message := self.next()):
            pass
        return message

    def end(self, signum: int) -> tuple[int, str]:
        self.process.send_signal(signum)
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output


@contextmanager
def _daemon(tmp_path: Path, mode: str, **environment: str) -> Iterator[_Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        process = subprocess.Popen(
            [sys.executable, "-c", _DAEMON, mode],
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            try:
                yield _Manager(sock, process)
            finally:
                process.kill()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_ready_then_a_clean_end_on_a_signal(tmp_path: Path, signum: int) -> None:
    with _daemon(tmp_path, "normal") as manager:
        assert manager.until("READY") == {"READY": "1", "STATUS": "serving"}
        code, output = manager.end(signum)
        assert manager.until("STOPPING")
    assert code == 0
    assert "stopped" in output


def test_a_signal_during_the_start_ends_it(tmp_path: Path) -> None:
    with _daemon(tmp_path, "slow", WATCHDOG_USEC="30000000") as manager:
        manager.until("WATCHDOG")
        code, output = manager.end(signal.SIGTERM)
    assert code == 0
    assert "stopped" in output


def test_a_refused_reload_keeps_the_daemon_and_says_why(tmp_path: Path) -> None:
    with _daemon(tmp_path, "normal") as manager:
        manager.until("READY")
        manager.process.send_signal(signal.SIGHUP)
        assert manager.until("RELOADING")["MONOTONIC_USEC"].isdecimal()
        assert manager.until("READY")["STATUS"] == "reload refused: gateway.yaml:3: listen: expected a port"
        manager.process.send_signal(signal.SIGHUP)
        manager.until("RELOADING")
        assert manager.until("READY")["STATUS"] == "serving again"
        assert manager.end(signal.SIGTERM)[0] == 0


def test_the_watchdog_is_fed_while_there_is_progress(tmp_path: Path) -> None:
    with _daemon(tmp_path, "normal", WATCHDOG_USEC="300000") as manager:
        manager.until("READY")
        for _ in range(3):
            assert manager.until("WATCHDOG") == {"WATCHDOG": "1"}


def test_the_watchdog_is_not_fed_without_progress(tmp_path: Path) -> None:
    with _daemon(tmp_path, "stuck", WATCHDOG_USEC="30000") as manager:
        manager.until("READY")
        manager.process.send_signal(signal.SIGHUP)
        messages = [manager.next(), manager.next()]
    assert not any("WATCHDOG" in message for message in messages)


@pytest.mark.parametrize(
    ("mode", "code", "text"),
    [("refuse", 78, "the port is taken"), ("end", 0, "stopped"), ("crash", 1, "RuntimeError: bug")],
)
def test_how_a_daemon_ends_by_itself(tmp_path: Path, mode: str, code: int, text: str) -> None:
    with _daemon(tmp_path, mode) as manager:
        output, _ = manager.process.communicate(timeout=30)
        assert manager.process.returncode == code
        assert text in output
