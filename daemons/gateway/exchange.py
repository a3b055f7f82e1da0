"""One request on its way through the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from daemons.gateway.api.content import Content
    from daemons.gateway.metrics import Series
    from daemons.gateway.pool.engine import Engine
    from daemons.gateway.relay.relay import Relay
    from daemons.gateway.tenants.keys import Tenant
    from daemons.gateway.tenants.limiter import Reservation
    from daemons.gateway.tracing import Trace


class Exchange(msgspec.Struct, eq=False):
    """What is known of a request; each stage adds its part.

    Attributes:
        request_id: as echoed to the client and logged.
        tenant: who asks.
        client: the client's address; empty where it is not known.
        endpoint: short name of the API path.
        arrived: loop time of its arrival.
        bytes_in: size of the body.
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

    request_id: str
    tenant: Tenant
    endpoint: str
    arrived: float
    client: str = ""
    bytes_in: int = 0
    model: str = ""
    model_label: str = "other"
    stream: bool = False
    prompt_estimate: int = 0
    queued_seconds: float = 0.0
    engine: Engine | None = None
    relay: Relay | None = None
    series: Series | None = None
    reservation: Reservation | None = None
    entry: int = 0
    retries: int = 0
    status: int = 0
    closes: bool = False
    trace: Trace | None = None
    content: Content | None = None
