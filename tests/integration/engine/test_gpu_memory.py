"""Between two starts on a GPU: what was killed has let go of its memory before the next start."""

import asyncio
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from daemons.engine.api import EngineApi
from daemons.engine.board import Board
from daemons.engine.command.releases import Release
from daemons.engine.config import EngineSettings
from daemons.engine.gpus import Gpu, Link
from daemons.engine.launch import Launch
from daemons.engine.meters import Meters
from daemons.engine.supervisor import Supervisor
from daemons.runtime.control import EngineState
from daemons.runtime.notify import SystemdNotifier
from tests.integration.engine.conftest import FAKE, gone, wait_for

UUID = "GPU-a"


class SlowDriver:
    """A driver that counts killed processes as holding memory for some looks more."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self.looks = 0
        self.starts_at_last_look = 0

    def gpus(self) -> list[Gpu]:
        raise NotImplementedError

    def links(self, uuids: Sequence[str]) -> list[Link]:
        raise NotImplementedError

    def processes(self, uuid: str) -> set[int]:
        assert uuid == UUID
        core = int((self._model / "core.pid").read_text())
        assert gone(core)
        self.looks += 1
        self.starts_at_last_look = len((self._model / "starts").read_text().splitlines())
        return {core} if self.looks < 4 else {1}


def is_ready(board: Board, generation: int) -> bool:
    return board.generation == generation and board.state == EngineState.READY


async def test_the_next_start_waits_until_the_driver_has_let_go(model: Path, tmp_path: Path) -> None:
    socket = tmp_path / "api.sock"
    settings = EngineSettings.model_validate(
        {
            "model": str(model),
            "served_names": ["m"],
            "gpus": [UUID],
            "metrics": {"port": 0},
            "restart": {"first_delay_seconds": 0},
            "stop": {"drain_seconds": 0, "announce_seconds": 0},
        }
    )
    launch = Launch(
        settings=settings,
        release=Release((0, 32, 0), frozenset()),
        command=(sys.executable, str(FAKE), "serve", str(model), "--uds", str(socket)),
        environment=dict(os.environ),
        socket=socket,
        gpus=(UUID,),
    )
    board, api, driver = Board(launch.gpus), EngineApi(socket), SlowDriver(model)
    supervisor = Supervisor(launch, board, api, Meters(board), SystemdNotifier(), inventory=driver)
    await supervisor.start()
    running = asyncio.create_task(supervisor.run())
    try:
        await api.post("/fake/exit", {}, 10)
        await asyncio.to_thread(wait_for, partial(is_ready, board, 2))
        assert driver.looks == 4
        assert driver.starts_at_last_look == 1
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await supervisor.stop()
