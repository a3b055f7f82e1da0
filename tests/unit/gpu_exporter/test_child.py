"""Child processes: what they write, how they end, and that none is left behind."""

import signal
import sys
from pathlib import Path

import pytest

from daemons.gpu_exporter.child import start


def children() -> set[str]:
    """Those that this thread has started and not reaped, dead ones too; another test's may be among them."""
    return set(Path("/proc/thread-self/children").read_text().split())


async def test_writes_to_us_and_ends() -> None:
    before = children()
    child = await start((sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"))
    assert await child.output.readline() == b"''\n"
    assert await child.output.read() == b""
    assert await child.ended(30)
    assert child.gone
    child.signal(signal.SIGKILL)
    child.close()
    assert children() <= before


async def test_is_killed() -> None:
    child = await start((sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"), quiet=True)
    await child.output.readline()
    assert not await child.ended(0)
    child.signal(signal.SIGKILL)
    assert await child.ended(30)
    child.close()


async def test_no_such_command() -> None:
    with pytest.raises(FileNotFoundError):
        await start(("no-such-command",))


async def test_environment_is_ours_without_what_belongs_to_us_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("FAKE_NVML", "x")
    child = await start(
        (sys.executable, "-c", "import os; print('NOTIFY_SOCKET' in os.environ, os.environ['FAKE_NVML'])")
    )
    assert await child.output.readline() == b"False x\n"
    assert await child.ended(30)
    child.close()
