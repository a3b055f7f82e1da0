"""One request on its way through the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemons.gateway.metrics import Series
    from daemons.gateway.pool.engine import Engine
    from daemons.gateway.relay.relay import Relay
    from daemons.gateway.tenants.keys import Tenant


class Exchange:
    """What is known of a request; each stage adds its part.

    Attributes:
        request_id: as echoed to the client and logged.
        tenant: who asks.
        endpoint: short name of the API path.
        arrived: loop time of its arrival.
        bytes_in: size of the body.
        model: the model asked for; empty until it is known.
        model_label: the model as a metric label.
        stream: whether a stream was asked for.
        prompt_estimate: the prompt's tokens, estimated.
        queued_seconds: the wait for a place.
        engine: where it went last.
        relay: its answer.
        series: its histograms, which count it as in flight.
        retries: attempts beyond the first.
        status: HTTP status of the answer; 0 while none was sent.
    """

    __slots__ = (
        "arrived",
        "bytes_in",
        "endpoint",
        "engine",
        "model",
        "model_label",
        "prompt_estimate",
        "queued_seconds",
        "relay",
        "request_id",
        "retries",
        "series",
        "status",
        "stream",
        "tenant",
    )

    def __init__(self, request_id: str, tenant: Tenant, endpoint: str, arrived: float) -> None:
        self.request_id = request_id
        self.tenant = tenant
        self.endpoint = endpoint
        self.arrived = arrived
        self.bytes_in = 0
        self.model = ""
        self.model_label = "other"
        self.stream = False
        self.prompt_estimate = 0
        self.queued_seconds = 0.0
        self.engine: Engine | None = None
        self.relay: Relay | None = None
        self.series: Series | None = None
        self.retries = 0
        self.status = 0
