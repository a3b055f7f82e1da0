"""All engines, by model."""

from collections.abc import Collection, Sequence

from daemons.gateway.pool.engine import Engine
from daemons.gateway.pool.pick import Asked, Routing
from daemons.runtime.control import EngineState


class Pool:
    """Engines by the models they serve.

    Attributes:
        engines: all of them.
        models: every model that is configured.
    """

    def __init__(self, engines: Sequence[Engine], routing: Routing) -> None:
        self.engines = tuple(engines)
        self._routing = routing
        self._by_model: dict[str, tuple[Engine, ...]] = {}
        for engine in engines:
            for model in engine.settings.models:
                self._by_model[model] = (*self._by_model.get(model, ()), engine)
        self.models: Collection[str] = self._by_model.keys()

    def serving(self, model: str) -> tuple[Engine, ...]:
        """The engines of `model`, in whatever state."""
        return self._by_model.get(model, ())

    def media_hosts(self, model: str) -> frozenset[str]:
        """Hosts that every engine of `model` may fetch media from."""
        hosts = [frozenset(e.settings.media_hosts) for e in self.serving(model)]
        return frozenset.intersection(*hosts) if hosts else frozenset()

    def pick(self, asked: Asked, now: float, without: Collection[Engine] = ()) -> Engine | None:
        """The engine to take the request, other than those of `without`; None when none has a place."""
        engines = self._by_model[asked.model]
        if len(engines) == 1 and not without:
            return engines[0] if engines[0].accepts(now) else None
        free = [e for e in engines if e.accepts(now) and e not in without]
        return self._routing.choose(free, asked) if free else None

    def lives(self, model: str, now: float) -> bool:
        """Whether any engine of `model` answers requests."""
        return any(engine.serves(now) for engine in self._by_model[model])

    def ready(self, now: float) -> bool:
        """Whether any engine at all would take a request."""
        return any(engine.accepts(now) for engine in self.engines)

    def describe(self, now: float, model: str | None = None) -> str:
        """Why nothing is ready, in one sentence."""
        engines = self.engines if model is None else self.serving(model)
        for wanted in (EngineState.STARTING, EngineState.DRAINING, EngineState.SICK, EngineState.STOPPED):
            for engine in engines:
                if engine.state is wanted:
                    detail = engine.report.phase or engine.report.reason
                    return f"{wanted.value}: {detail}" if detail else wanted.value
        if all(engine.drained for engine in engines):
            return "drained by an operator"
        if any(engine.rests(now) for engine in engines):
            return "requests did not reach it, and the next is tried within 15 s"
        return "every place is taken"
