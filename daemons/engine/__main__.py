"""``llm-engine NAME``: run one engine."""

import asyncio
import contextlib
import sys

from daemons.engine import config
from daemons.engine.api import EngineApi
from daemons.engine.board import Board
from daemons.engine.control_server import control_app
from daemons.engine.gpu_trouble import TroubleWatch
from daemons.engine.gpus import Inventory, NvmlInventory
from daemons.engine.launch import Launch, command_of, control_socket_of, prepare, release_of
from daemons.engine.meters import Meters, metrics_app
from daemons.engine.processes import adopt_orphans, stay_near
from daemons.engine.supervisor import Supervisor
from daemons.runtime import cli, lifecycle
from daemons.runtime.http import serving
from daemons.runtime.notify import Notifier, SystemdNotifier
from daemons.runtime.sockets import listen_tcp, listen_unix

PROG = "llm-engine"


class EngineDaemon(lifecycle.Daemon):
    """The supervisor with its control socket and its metrics."""

    def __init__(self, launch: Launch, notifier: Notifier, inventory: Inventory) -> None:
        self._launch = launch
        self._board = Board(launch.gpus)
        self._api = EngineApi(launch.socket, self._board.used)
        self._meters = Meters(self._board)
        if launch.peers.facts:
            self._meters.show_peers({**launch.peers.facts, "direct": str(launch.peers.direct).lower()})
        self._supervisor = Supervisor(
            launch, self._board, self._api, self._meters, notifier, inventory=inventory
        )
        self._servers = contextlib.AsyncExitStack()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen, so that gateways see the start, then start vLLM."""
        settings = self._launch.settings
        control = listen_unix(control_socket_of(settings))
        await self._servers.enter_async_context(serving(control_app(self._board), control))
        metrics = listen_tcp(settings.metrics, "metrics")
        await self._servers.enter_async_context(serving(metrics_app(self._meters, self._api), metrics))
        if self._launch.gpus:
            watch = TroubleWatch(settings.gpu_exporter, self._board, self._launch.gpus)
            self._watching = asyncio.create_task(watch.run())
        return await self._supervisor.start()

    async def run(self) -> None:
        """Keep it running."""
        await self._supervisor.run()

    def progressing(self) -> bool:
        """Whether the watchdog within still runs; it, not systemd, restarts vLLM."""
        return self._supervisor.alive()

    async def stop(self) -> None:
        """End vLLM, then ourselves; the control socket speaks to the last."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._supervisor.stop()
        await self._servers.aclose()


def main(argv: list[str] | None = None) -> int:
    """Run ``llm-engine``; returns its exit status."""
    parser = cli.parser(PROG, "Runs one vLLM engine: starts it, watches it, restarts it, ends it.", None)
    parser.add_argument(
        "name", metavar="NAME", help="the engine; its settings are /etc/llm/engines/NAME.yaml"
    )
    args = parser.parse_args(argv)

    def check() -> str:
        settings = config.load(args.name, args.config)
        release = release_of(settings)
        command_of(settings, release)
        return f"{args.name} is good: {settings.model} on vLLM {release.name}"

    def run() -> int:
        settings = config.load(args.name, args.config)
        inventory = NvmlInventory()
        launch = prepare(settings, inventory, config.neighbours(args.name, args.config))
        stay_near(launch.cpus)
        adopt_orphans()
        notifier = SystemdNotifier()
        return lifecycle.run(EngineDaemon(launch, notifier, inventory), notifier)

    if args.check:
        return cli.report_check(PROG, check)
    return cli.guard(PROG, args.log_level, run)


if __name__ == "__main__":
    sys.exit(main())
