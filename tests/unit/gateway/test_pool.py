"""What the gateway makes of an engine that does not take its connections."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from daemons.gateway.pool.connections import Dialer
from daemons.gateway.pool.engine import Engine
from daemons.gateway.pool.pick import LeastInFlight
from daemons.gateway.pool.pool import Pool
from daemons.gateway.settings import EngineSettings
from daemons.runtime.control import EngineReport, EngineState


@contextlib.contextmanager
def full(path: Path) -> Iterator[socket.socket]:
    """A listener of whose connections no more can wait."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        yield listener


def test_an_engine_that_is_behind_with_accepting_is_waited_for(tmp_path: Path) -> None:
    async def dial(listener: socket.socket) -> None:
        opening = asyncio.create_task(Dialer(f"unix://{tmp_path}/api.sock", None, 60.0).open())
        await asyncio.sleep(0.05)
        assert not opening.done()
        while not opening.done():
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
            await asyncio.sleep(0.001)
        (await opening).transport.abort()

    with full(tmp_path / "api.sock") as listener:
        # As daemons run: asyncio's own loop takes such a connection for one that is made.
        uvloop.run(dial(listener))


def test_an_engine_that_accepts_nothing_fails_when_its_time_is_over(tmp_path: Path) -> None:
    with full(tmp_path / "api.sock"), pytest.raises(TimeoutError):
        uvloop.run(Dialer(f"unix://{tmp_path}/api.sock", None, 0.05).open())


def test_an_engine_that_rests_is_logged_and_described() -> None:
    engine = Engine(EngineSettings(name="a", url="http://127.0.0.1:9", models=["m"], max_in_flight=1), 1.0)
    pool = Pool([engine], LeastInFlight())
    engine.report = EngineReport(state=EngineState.READY)
    engine.in_flight = 1
    assert pool.describe(100.0) == "every place is taken"
    with capture_logs() as lines:
        for _ in range(12):
            engine.failed(100.0)
    assert [(line["engine"], line["seconds"]) for line in lines] == [("a", 15.0)]
    assert not pool.lives("m", 114.0)
    assert "did not reach it" in pool.describe(114.0)
    assert pool.lives("m", 115.0)
    engine.drained = True
    assert pool.describe(115.0, "m") == "drained by an operator"
