"""The gateway put together: sockets, stages, background work, start and end."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Collection
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import structlog
from pydantic import SecretStr

from daemons.gateway.admission.queue import Admission, FirstComeByClass
from daemons.gateway.api.accept import new_id
from daemons.gateway.api.admin import Admin
from daemons.gateway.api.cors import Cors
from daemons.gateway.api.dispatch import Dispatch
from daemons.gateway.api.inference import Inference, Stages
from daemons.gateway.api.info import Info
from daemons.gateway.api.server import GatewayServer
from daemons.gateway.api.usage import Usage
from daemons.gateway.errors import ErrorCode
from daemons.gateway.exchange import Exchange
from daemons.gateway.history import History
from daemons.gateway.metrics import Metrics, PoolCollector, register
from daemons.gateway.policy.sanitise import Policy, cache_salts
from daemons.gateway.pool.engine import Engine
from daemons.gateway.pool.pick import LeastInFlight
from daemons.gateway.pool.poller import Poller
from daemons.gateway.pool.pool import Pool
from daemons.gateway.relay import stream
from daemons.gateway.relay.attempts import Attempts, RetryBudget
from daemons.gateway.settings import GatewaySettings, TracingSettings
from daemons.gateway.settle import Settle
from daemons.gateway.succession import Succession, Word
from daemons.gateway.tenants.tenancy import Tenancy
from daemons.gateway.totals import SECTION as TOTALS
from daemons.gateway.totals import Totals
from daemons.runtime import metrics as runtime_metrics
from daemons.runtime.control import EngineReport
from daemons.runtime.errors import EXIT_CONFIG, Fatal
from daemons.runtime.http import serving
from daemons.runtime.lifecycle import Daemon
from daemons.runtime.logs import Records
from daemons.runtime.sockets import listen_unix, port_of

if TYPE_CHECKING:
    from daemons.gateway.tracing import Tracing

log = structlog.get_logger()

_TELL_SECONDS = 1.0
_FIRST_ROUND = 3.0
"""Seconds for the engines to say how they are before the gateway takes connections."""


class Gateway(Daemon):
    """Serves the API on `http` and the metrics on `metrics`, sockets that are already listening.

    Attributes:
        pool: the engines.
        tenancy: keys, limits and ledger.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        salt_secret: bytes,
        http: list[socket.socket],
        metrics: list[socket.socket],
        succession: Succession | None = None,
        *,
        redis_password: SecretStr | None = None,
    ) -> None:
        """`succession` is this worker's place among others on the same sockets; None where it has none."""
        self._settings = settings
        self._succession = succession
        self._salt = cache_salts(salt_secret)
        self._http = http
        self._metrics_sockets = metrics
        self._background: list[asyncio.Task[None]] = []
        self._servers: list[asyncio.Server] = []
        self._exits = contextlib.AsyncExitStack()
        self._metrics = Metrics()
        self._totals = Totals(self._metrics)
        tracing, collector = require_tracing(settings.tracing), settings.tracing.endpoint
        self._tracing = tracing(collector) if tracing and collector else None
        connect = settings.timeouts.connect
        self.pool = Pool([Engine(e, connect) for e in settings.engines], LeastInFlight())
        self._metrics.expect(self.pool.models)
        self.tenancy = Tenancy(
            settings,
            self._metrics,
            self.pool.engines,
            self._active,
            succession=succession,
            redis_password=redis_password,
        )
        self._admission = Admission(self.pool, settings.queue, FirstComeByClass)
        self._inference: Inference | None = None
        self._server: GatewayServer | None = None
        self._info: Info | None = None
        self._scrapes: asyncio.Task[None] | None = None
        self._told = 0
        # A process id may come again, and the counts of both would be taken for those of one.
        self._worker = new_id()
        self._settle: Settle | None = None

    async def start(self) -> str:
        """Begin to serve."""
        tenancy = self.tenancy
        await tenancy.start()
        history = History()
        if self._settings.debug.log_content_of:
            log.warning("prompts and answers are logged", keys=self._settings.debug.log_content_of)
        self._settle = Settle(self._metrics, Records("llm-gateway", "request"), history, tenancy.ledger)
        stages = Stages(
            authenticate=tenancy.authenticate,
            policy=Policy(self._settings.policy, self._salt, self.pool.media_hosts),
            limits=tenancy.limits,
            pool=self.pool,
            admission=self._admission,
            attempts=Attempts(self.pool, self._metrics, RetryBudget()),
            bill=tenancy.ledger,
            settle=self._settle,
            metrics=self._metrics,
            tracing=self._tracing,
        )
        cors = Cors(self._settings.cors)
        self._inference = Inference(self._settings, stages, cors)
        self._info = Info(self.pool, tenancy.authenticate, self._settings.ready_wait)
        usage = Usage(tenancy.authenticate, tenancy.limits, self._settings.ledger)
        dispatch = Dispatch(self._inference, self._info, usage, cors, self._metrics)
        self._server = GatewayServer(dispatch, self._settings.limits, self._settings.timeouts)
        pollers = [Poller(engine, self._engine_changed) for engine in self.pool.engines]
        for poller in pollers:
            poller.engine.trouble = poller.hurry
        self._background += [asyncio.create_task(poller.run()) for poller in pollers]
        self._background.append(asyncio.create_task(self._sweep()))
        await self._serve_admin(Admin(self.pool, self._admission, self._inference, history))
        if self._succession is not None:
            await self._succession.listen(self._totals.hear)
        registry = runtime_metrics.new_registry()
        register(
            registry,
            self._totals,
            PoolCollector(self.pool, self._admission),
            *tenancy.collectors(),
        )
        render = runtime_metrics.render_registry(registry)
        self._scrapes = asyncio.create_task(self._serve_metrics(render))
        # Whoever comes first must not be told that no engine lives because none was asked yet.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_ROUND):
                await asyncio.gather(*(poller.asked.wait() for poller in pollers))
        await tenancy.take_over()
        loop = asyncio.get_running_loop()
        for sock in self._http:
            self._servers.append(await loop.create_server(self._server, sock=sock, backlog=4096))
        ports = ", ".join(str(port_of(s)) for s in self._http)
        compiled = str(stream.__file__).endswith(".so")
        return f"serving on port {ports}, relay {'compiled' if compiled else 'interpreted'}"

    def _active(self) -> Collection[Exchange]:
        """Requests on their way."""
        return self._inference.active if self._inference is not None else ()

    async def _serve_metrics(self, render: runtime_metrics.Render) -> None:
        """Answer scrapes, but not before the predecessor's counts are known: counters must not go back."""
        if self._succession is not None:
            await self._succession.predecessor_told()
        for sock in self._metrics_sockets:
            serving = runtime_metrics.serve_metrics("LLM gateway", render, sock)
            await self._exits.enter_async_context(serving)

    async def _serve_admin(self, admin: Admin) -> None:
        path = self._settings.admin or _default_admin()
        if path is None:
            return
        if self._succession is not None and self._succession.predecessor:
            # It still listens there; only that of another gateway must not be taken away.
            await asyncio.to_thread(path.unlink, missing_ok=True)
        sock = await asyncio.to_thread(listen_unix, path)
        await self._exits.enter_async_context(serving(admin.app(), sock))

    async def stop(self) -> None:
        """Take no new connection, let what is in flight finish, close everything."""
        for server in self._servers:
            server.close()
        # The successor answers scrapes from now on.
        if self._scrapes is not None:
            self._scrapes.cancel()
            await asyncio.gather(self._scrapes, return_exceptions=True)
        await self._exits.aclose()
        telling = asyncio.create_task(self._tell_successor())
        if self._inference is not None:
            await self._drain(self._inference)
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(1.0)
        for task in self._background:
            task.cancel()
        telling.cancel()
        await asyncio.gather(telling, *self._background, return_exceptions=True)
        await self._tell(last=True)
        if self._settle is not None:
            self._settle.close()
        await self.tenancy.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        for engine in self.pool.engines:
            engine.dialer.close()

    async def _tell_successor(self) -> None:
        if self._succession is not None:
            self._succession.stop_listening()
        while True:
            await self._tell()
            await asyncio.sleep(_TELL_SECONDS)

    async def _tell(self, *, last: bool = False) -> None:
        if self._succession is None:
            return
        self._told += 1
        sections = {TOTALS: self._totals.telling()}
        word = Word(worker=self._worker, number=self._told, last=last, sections=sections)
        await self._succession.tell(word)

    async def _drain(self, inference: Inference) -> None:
        inference.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.timeouts.drain):
                # Whether a connection has become idle is a matter of time, not of an event.
                while not (self._server is None or self._server.close_idle(monotonic())):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        # Before the others make room: nobody is let in only to be cut.
        self._admission.close()
        for exchange in list(inference.active):
            if exchange.relay is not None:
                exchange.relay.fail(ErrorCode.SHUTTING_DOWN, "")
        await asyncio.sleep(0)

    def _engine_changed(self, engine: Engine, before: EngineReport) -> None:
        report = engine.report
        if report.state != before.state:
            log.info(
                "engine", engine=engine.name, state=report.state, reason=report.reason, phase=report.phase
            )
        if self._info is not None:
            self._info.engines_changed()
        now = monotonic()
        for model in engine.settings.models:
            self._admission.pump(model, now)

    async def _sweep(self) -> None:
        """End what takes too long, and let in who waits; runs often enough for the shortest timeout."""
        t = self._settings.timeouts
        shortest = min(t.between_chunks, t.stalled_reader, t.keep_alive, t.total)
        interval = min(1.0, max(0.02, shortest / 4))
        while True:
            await asyncio.sleep(interval)
            # In a call of its own: what it looked at last must not stay until there is something else.
            self._sweep_once(monotonic())

    def _sweep_once(self, now: float) -> None:
        if self._server is not None:
            self._server.drop_stalled(now)
        for engine in self.pool.engines:
            for relay in list(engine.relays):
                relay.check(now)
        if self._inference is not None:
            self._inference.forget_bodies()
        self._metrics.gather()
        # A place may be there without an event: a retry has left it, or an engine has rested.
        for model in self.pool.models:
            self._admission.pump(model, now)


def require_tracing(settings: TracingSettings) -> "type[Tracing] | None":
    """What traces requests; None where that is off.

    Raises:
        Fatal: the optional extra is missing.
    """
    if settings.endpoint is None:
        return None
    try:
        from daemons.gateway.tracing import Tracing  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise Fatal(
            f"tracing.endpoint is set, but {error.name} is not installed: install the extra 'otel',"
            " or remove the setting",
            EXIT_CONFIG,
        ) from None
    return Tracing


def _default_admin() -> Path | None:
    folder = os.environ.get("RUNTIME_DIRECTORY")
    return Path(folder.split(":")[0]) / "admin.sock" if folder else None
