"""The admin socket: state, top, explain, drain. Nothing of it is on the public port.

``GET /state``, ``GET /top``, ``GET /explain/REQUEST_ID``, ``POST /drain/ENGINE``, ``POST /undrain/ENGINE``.
"""

import os
from time import monotonic

import msgspec
from aiohttp import web

from daemons.gateway.admission.queue import Admission
from daemons.gateway.api.inference import Inference
from daemons.gateway.exchange import Exchange
from daemons.gateway.history import History
from daemons.gateway.pool.pool import Pool
from daemons.runtime.version import VERSION


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


class Admin:
    """What an operator asks of a running gateway; its answers are JSON."""

    def __init__(self, pool: Pool, admission: Admission, inference: Inference, history: History) -> None:
        self._pool = pool
        self._admission = admission
        self._inference = inference
        self._history = history

    def app(self) -> web.Application:
        """The application to serve on the admin socket."""
        app = web.Application()
        app.router.add_get("/state", self._state)
        app.router.add_get("/top", self._top)
        app.router.add_get("/explain/{request_id}", self._explain)
        app.router.add_post("/drain/{engine}", self._drain)
        app.router.add_post("/undrain/{engine}", self._drain)
        return app

    async def _state(self, _: web.Request) -> web.Response:
        now = monotonic()
        engines = [
            {
                "name": engine.name,
                "state": engine.state,
                "reason": engine.report.reason,
                "phase": engine.report.phase,
                "generation": engine.report.generation,
                "models": engine.settings.models,
                "in_flight": engine.in_flight,
                "max_in_flight": engine.settings.max_in_flight,
                "oldest_silence": round(engine.oldest_silence(now), 3),
                "drained": engine.drained,
                "serves": engine.serves(now),
            }
            for engine in self._pool.engines
        ]
        queues = {model: self._admission.waiting(model) for model in self._pool.models}
        return _json(
            {
                "version": VERSION,
                "pid": os.getpid(),
                "draining": self._inference.draining,
                "in_flight": len(self._inference.active),
                "engines": engines,
                "queues": queues,
            }
        )

    async def _top(self, _: web.Request) -> web.Response:
        now = monotonic()
        active = sorted(self._inference.active, key=lambda exchange: exchange.arrived)
        return _json([_row(exchange, now) for exchange in active])

    async def _explain(self, request: web.Request) -> web.Response:
        wanted = request.match_info["request_id"]
        for exchange in self._inference.active:
            if exchange.request_id == wanted:
                return _json({"outcome": "in flight", **_row(exchange, monotonic())})
        found = self._history.find(wanted)
        if found is None:
            return _json(
                {"error": f"{wanted}: not among the last requests; older ones are in the journal"}, 404
            )
        return _json(found)

    async def _drain(self, request: web.Request) -> web.Response:
        name = request.match_info["engine"]
        for engine in self._pool.engines:
            if engine.name == name:
                engine.drained = request.path.startswith("/drain/")
                for model in engine.settings.models:
                    self._admission.pump(model, monotonic())
                return _json({"name": name, "drained": engine.drained, "in_flight": engine.in_flight})
        return _json({"error": f"no engine is named {name}"}, 404)


def _row(exchange: Exchange, now: float) -> dict[str, object]:
    relay = exchange.relay
    return {
        "request_id": exchange.request_id,
        "key": exchange.tenant.alias,
        "model": exchange.model[:128],
        "endpoint": exchange.endpoint,
        "priority": exchange.tenant.priority,
        "stream": exchange.stream,
        "engine": exchange.engine.name if exchange.engine else None,
        "seconds": round(now - exchange.arrived, 3),
        "stage": _stage(exchange),
        "bytes_out": relay.bytes_out if relay else 0,
        "retries": exchange.retries,
    }


def _stage(exchange: Exchange) -> str:
    if exchange.series is None:
        return "receiving"
    if exchange.engine is None:
        return "queued"
    return "streaming" if exchange.relay is not None and exchange.relay.first_at else "waiting for the engine"
