"""The foreground service manager, with real processes that speak sd_notify."""

import asyncio
import contextlib
import ctypes
import os
import select
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemons.llmctl.up import units
from daemons.llmctl.up.notifications import parse
from daemons.llmctl.up.processes import MainProcesses, become_subreaper, children_of
from daemons.llmctl.up.units import Service, State, Unit, describe_exit
from daemons.runtime.sockets import Address, listen_tcp, port_of

DEADLINE_SEC = 60.0
PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(autouse=True)
def blockbuster() -> None:
    """Not here: nobody waits for the manager's event loop while it opens a log or removes a socket."""


@pytest.fixture
def mains() -> Iterator[MainProcesses]:
    """A manager in this process, to which only its own orphans belong: other tests may have children here."""
    made = MainProcesses()
    made.pids.update(children_of(os.getpid()))
    become_subreaper()
    yield made
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


_PRELUDE = """
import os, pathlib, signal, socket, subprocess, sys, time
from daemons.runtime.notify import SystemdNotifier
tell, folder = SystemdNotifier(), pathlib.Path(sys.argv[1])
lives = folder / "lives"
life = len(lives.read_text()) + 1 if lives.exists() else 1
lives.write_text("x" * life)
"""


class _Run:
    service: Service

    def __init__(self) -> None:
        self.history: list[tuple[State, str]] = []
        self._changed = asyncio.Event()

    def record(self, service: Service) -> None:
        self.history.append((service.state, service.status))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SEC):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def said(self, status: str) -> bool:
        return any(status in line for _, line in self.history)


@contextlib.asynccontextmanager
async def _running(
    tmp_path: Path, mains: MainProcesses, script: str, **changes: object
) -> AsyncIterator[_Run]:
    command = (sys.executable, "-c", _PRELUDE + script, str(tmp_path))
    unit = Unit(name="example", command=command, log=tmp_path / "log", restart_sec=0.01, **changes)  # type: ignore[arg-type]
    run = _Run()
    run.service = Service(unit, tmp_path, mains, run.record)
    task = asyncio.create_task(run.service.run())
    try:
        yield run
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_ready_and_status_are_followed_and_sigterm_ends_it(
    tmp_path: Path, mains: MainProcesses
) -> None:
    script = "tell.status('loading'); tell.ready('serving'); signal.pause()"
    async with _running(tmp_path, mains, script) as run:
        await run.until(lambda: run.service.state is State.ACTIVE)
        assert run.said("loading")
        assert run.service.settled.is_set()
    assert run.history[-1] == (State.INACTIVE, "stopped")


async def test_a_missed_watchdog_is_a_restart(tmp_path: Path, mains: MainProcesses) -> None:
    script = """
tell.ready(f'life {life}')
while life > 1: tell.watchdog(); time.sleep(0.05)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    async with _running(tmp_path, mains, script, watchdog_sec=0.5) as run:
        await run.until(lambda: run.said("life 2"))
        assert run.said("no watchdog message in time")


class _Clock:
    """The manager's `time`: it can be put forward, and counts how often the manager looked."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return time.monotonic() + self.ahead

    async def forward(self, seconds: float) -> None:
        """Put it forward, and wait until the manager has seen that."""
        self.ahead += seconds
        before = self.looks
        async with asyncio.timeout(DEADLINE_SEC):
            while self.looks == before:  # noqa: ASYNC110 - it tells nobody that it looks
                await asyncio.sleep(0.01)


async def test_the_start_timeout_grows_only_when_asked_for(
    tmp_path: Path, mains: MainProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock()
    monkeypatch.setattr(units, "time", clock)
    script = """
tell.extend_timeout(600); tell.status('asked for time')
while not (folder / 'go').exists(): time.sleep(0.01)
tell.ready('late'); signal.pause()
"""
    async with _running(tmp_path, mains, script) as run:
        await run.until(lambda: run.said("asked for time"))
        await clock.forward(2 * run.service.unit.timeout_start_sec)
        (tmp_path / "go").touch()
        await run.until(lambda: run.service.state is State.ACTIVE)
    async with _running(tmp_path, mains, "signal.pause()", timeout_start_sec=0.5) as run:
        await run.until(lambda: run.service.state is State.FAILED)
        assert run.said("not ready in time")


async def test_a_crash_after_ready_is_a_restart_and_the_start_limit_ends_it(
    tmp_path: Path, mains: MainProcesses
) -> None:
    script = "tell.ready(f'life {life}'); sys.exit(1)"
    async with _running(tmp_path, mains, script, start_limit_burst=3) as run:
        await run.until(lambda: run.service.state is State.FAILED)
    assert (tmp_path / "lives").read_text() == "xxx"


@pytest.mark.parametrize(("script", "status"), [("sys.exit(78)", 78), ("sys.exit(1)", 1)])
async def test_a_failed_first_start_is_final(
    tmp_path: Path, mains: MainProcesses, script: str, status: int
) -> None:
    async with _running(tmp_path, mains, script) as run:
        await run.until(lambda: run.service.state is State.FAILED)
        assert run.service.exit_status == status
    assert (tmp_path / "lives").read_text() == "x"


async def test_sockets_are_handed_over_as_systemd_does(tmp_path: Path, mains: MainProcesses) -> None:
    script = """
from daemons.runtime.sockets import inherited, port_of
tell.ready(str({name: port_of(socks[0]) for name, socks in inherited().items()})); signal.pause()
"""
    with listen_tcp(Address(port=0)) as http, listen_tcp(Address(port=0)) as metrics:
        async with _running(tmp_path, mains, script, sockets={"http": http, "metrics": metrics}) as run:
            await run.until(lambda: run.service.state is State.ACTIVE)
            assert run.service.status == str({"http": port_of(http), "metrics": port_of(metrics)})


async def test_what_a_main_process_leaves_behind_ends_with_it(tmp_path: Path, mains: MainProcesses) -> None:
    script = """
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
tell.ready(str(child.pid)); signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True: signal.pause()
"""
    async with _running(tmp_path, mains, script, timeout_stop_sec=0.5) as run:
        await run.until(lambda: run.service.state is State.ACTIVE)
        pid = int(run.service.status)
        orphan = os.pidfd_open(pid)
    with os.fdopen(orphan) as fd:
        assert select.select([fd], [], [], DEADLINE_SEC)[0]
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it is dead


@given(st.binary(max_size=200))
def test_any_datagram_is_read(datagram: bytes) -> None:
    assert all("=" not in key for key in parse(datagram))


def test_an_exit_is_described_in_words() -> None:
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(3) == "ended with status 3"
