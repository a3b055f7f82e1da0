"""The engine's own metrics, and vLLM's passed through on the same address."""

import re
import time
from collections.abc import Callable, Mapping
from functools import partial

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from daemons.engine.api import EngineApi, EngineSilent, EngineUnreachable
from daemons.engine.board import Board
from daemons.runtime.control import EngineState
from daemons.runtime.metrics import new_registry

_PASS_SECONDS = 3.0
_TEXT = "text/plain; version=0.0.4; charset=utf-8"

# vLLM's process_* and python_* describe its API server; ours have the same names.
_CLASH = re.compile(r"^(?:# (?:HELP|TYPE) )?(?:process|python)_")


class Meters:
    """Metrics of one supervisor.

    Attributes:
        registry: where they are registered.
        last_look: when the watchdog last looked at the engine.
    """

    def __init__(self, board: Board, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry: CollectorRegistry = new_registry()
        self._clock = clock
        self._last_token: float | None = None
        self.last_look = clock()
        state = Gauge(
            "llm_engine_state", "1 for the state the engine is in", ["state"], registry=self.registry
        )
        for one in EngineState:
            state.labels(one.value).set_function(partial(_is_in, board, one))
        Gauge(
            "llm_engine_generation", "Starts of vLLM by this supervisor", registry=self.registry
        ).set_function(lambda: board.generation)
        Gauge(
            "llm_engine_gateway_in_flight", "Requests that gateways have in flight", registry=self.registry
        ).set_function(board.in_flight)
        Gauge(
            "llm_engine_seconds_since_last_token",
            "Seconds since vLLM's token counters moved; NaN before the first token",
            registry=self.registry,
        ).set_function(self._since_last_token)
        self.phase_seconds = Gauge(
            "llm_engine_startup_phase_seconds",
            "Duration of each phase of the last start",
            ["phase"],
            registry=self.registry,
        )
        self.startup_seconds = Gauge(
            "llm_engine_startup_seconds", "Duration of the last start that succeeded", registry=self.registry
        )
        self.restarts = Counter(
            "llm_engine_restarts", "Restarts of vLLM by cause", ["cause"], registry=self.registry
        )
        # From the start, so that the first restart is an increase.
        for cause in ("start", "exit", "hang"):
            self.restarts.labels(cause)
        self.kv_tokens = Gauge(
            "llm_engine_kv_cache_tokens",
            "Capacity of the KV cache by the plan and by vLLM's own log, for the longest requests",
            ["source"],
            registry=self.registry,
        )
        self.upstream_up = Gauge(
            "llm_engine_metrics_up",
            "1 when vLLM's own metrics are part of this answer",
            registry=self.registry,
        )

    def show_peers(self, facts: Mapping[str, str]) -> None:
        """How the engine's GPUs reach each other, as labels of a series that is 1."""
        Gauge(
            "llm_engine_gpu_peers_info",
            "How the GPUs of this engine reach each other",
            sorted(facts),
            registry=self.registry,
        ).labels(**facts).set(1)

    def token_seen(self) -> None:
        """The token counters moved."""
        self._last_token = self._clock()

    def looked(self) -> None:
        """The watchdog looked at the engine."""
        self.last_look = self._clock()

    def _since_last_token(self) -> float:
        return float("nan") if self._last_token is None else self._clock() - self._last_token


def _is_in(board: Board, state: EngineState) -> float:
    return float(board.report().state == state)


def pass_through(exposition: str) -> str:
    """vLLM's exposition without the families that ours has too."""
    kept = [line for line in exposition.splitlines() if line and not _CLASH.match(line)]
    return "\n".join(kept) + "\n" if kept else ""


def metrics_app(meters: Meters, api: EngineApi) -> web.Application:
    """``GET /metrics``: ours, and vLLM's as it is at this moment, or nothing of it."""

    async def metrics(_: web.Request) -> web.Response:
        upstream = ""
        try:
            answer = await api.get("/metrics", _PASS_SECONDS)
        except (EngineSilent, EngineUnreachable):
            pass
        else:
            upstream = pass_through(answer.body) if answer.status == 200 else ""
        meters.upstream_up.set(bool(upstream))
        body = generate_latest(meters.registry).decode() + upstream
        return web.Response(body=body.encode(), headers={"Content-Type": _TEXT})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    return app
