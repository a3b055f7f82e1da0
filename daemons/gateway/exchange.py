"""One request on its way through the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemons.gateway.api.content import Content
    from daemons.gateway.metrics import Series
    from daemons.gateway.pool.engine import Engine
    from daemons.gateway.pool.pick import Asked
    from daemons.gateway.relay.relay import Relay
    from daemons.gateway.tenants.limiter import Reservation
    from daemons.gateway.tenants.ring import Tenant
    from daemons.gateway.tracing import Trace


class Exchange:
    """What is known of a request; each stage adds its part.

    Attributes:
        request_id: as echoed to the client and logged.
        tenant: who asks.
        client: the client's address; empty where it is not known.
        endpoint: short name of the API path.
        arrived: loop time of its arrival.
        bytes_in: size of the body.
        held: bytes of it that count among the large ones; 0 once its answer has begun.
        asked: what an engine is asked for.
        model: the model asked for; empty until it is known.
        model_label: the model as a metric label.
        stream: whether a stream was asked for.
        prompt_estimate: the prompt's tokens, estimated; 0 where the engine does not work on them.
        queued_seconds: the wait for a place.
        engine: where it went last.
        relay: its answer.
        series: its histograms, which count it as in flight.
        reservation: what it holds of its key's limits.
        entry: its number in the ledger; 0 before it is let in.
        retries: attempts beyond the first.
        status: HTTP status of the answer; 0 while none was sent.
        closes: the connection ends with the answer, and the client is told so.
        trace: its spans, where requests are traced.
        content: prompt and answer, where the key's are logged.
    """

    __slots__ = (
        "arrived",
        "asked",
        "bytes_in",
        "client",
        "closes",
        "content",
        "endpoint",
        "engine",
        "entry",
        "held",
        "model",
        "model_label",
        "prompt_estimate",
        "queued_seconds",
        "relay",
        "request_id",
        "reservation",
        "retries",
        "series",
        "status",
        "stream",
        "tenant",
        "trace",
    )

    def __init__(
        self,
        request_id: str,
        tenant: Tenant,
        endpoint: str,
        arrived: float,
        client: str = "",
        *,
        model: str = "",
    ) -> None:
        self.request_id = request_id
        self.tenant = tenant
        self.endpoint = endpoint
        self.arrived = arrived
        self.client = client
        self.model = model
        self.bytes_in = self.held = 0
        self.asked: Asked | None = None
        self.model_label = "other"
        self.stream = False
        self.prompt_estimate = 0
        self.queued_seconds = 0.0
        self.engine: Engine | None = None
        self.relay: Relay | None = None
        self.series: Series | None = None
        self.reservation: Reservation | None = None
        self.entry = 0
        self.retries = 0
        self.status = 0
        self.closes = False
        self.trace: Trace | None = None
        self.content: Content | None = None
