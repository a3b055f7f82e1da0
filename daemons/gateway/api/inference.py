"""A request for an engine, from its arrival to its end, stage by stage."""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

from aiohttp.http import HttpVersion10
from multidict import CIMultiDictProxy

from daemons.gateway.admission.queue import Admission
from daemons.gateway.api import accept
from daemons.gateway.api.accept import X_REQUEST_ID
from daemons.gateway.api.arrival import Arrival
from daemons.gateway.api.bodies import SMALL, Bodies
from daemons.gateway.api.content import Content
from daemons.gateway.api.cors import Cors
from daemons.gateway.api.endpoints import Endpoint
from daemons.gateway.api.engine_refusal import engine_refusal
from daemons.gateway.api.forms import ANTHROPIC, message_of
from daemons.gateway.api.server import ClientConnection
from daemons.gateway.errors import ApiError, ErrorCode, status_of
from daemons.gateway.exchange import Exchange
from daemons.gateway.metrics import Metrics
from daemons.gateway.policy.sanitise import Policy, Sanitised
from daemons.gateway.pool.engine import Engine
from daemons.gateway.pool.pick import Asked
from daemons.gateway.pool.pool import Pool
from daemons.gateway.relay.attempts import Attempts
from daemons.gateway.relay.relay import Patience, Relay
from daemons.gateway.relay.stream import StreamRelay
from daemons.gateway.settings import PRIORITIES, GatewaySettings, Priority, Timeouts
from daemons.gateway.settle import Bill, Settle
from daemons.gateway.tenants.authenticate import Authenticator
from daemons.gateway.tenants.reserve import Limits
from daemons.gateway.tenants.ring import Tenant

if TYPE_CHECKING:
    from daemons.gateway.tracing import Tracing


_NAMED: Final = b" HTTP/1.1\r\nX-Request-Id: "
_HTTP_1_0: Final[object] = HttpVersion10
_WHERE: Final = "GET /v1/models lists those that this key may use."


class Stages:
    """What a request passes, in this order."""

    def __init__(
        self,
        *,
        authenticate: Authenticator,
        policy: Policy,
        limits: Limits,
        pool: Pool,
        admission: Admission,
        attempts: Attempts,
        bill: Bill,
        settle: Settle,
        metrics: Metrics,
        tracing: "Tracing | None",
    ) -> None:
        self.authenticate = authenticate
        self.policy = policy
        self.limits = limits
        self.pool = pool
        self.admission = admission
        self.attempts = attempts
        self.bill = bill
        self.settle = settle
        self.metrics = metrics
        self.tracing = tracing


class Inference:
    """Serves the endpoints whose answers come from an engine.

    Attributes:
        active: requests on their way.
        draining: answers close their connections.
    """

    def __init__(self, settings: GatewaySettings, stages: Stages, cors: Cors) -> None:
        self._limits = limits = settings.limits
        self._bodies = Bodies(limits.bodies_bytes, limits.body_bytes, stages.metrics.rate_limited)
        self._timeouts = settings.timeouts
        self._stages = stages
        self._cors = cors
        self._tracing = stages.tracing
        self._content_of = frozenset(settings.debug.log_content_of)
        self._patience = {priority: _patience(settings.timeouts, priority) for priority in PRIORITIES}
        self._whole = _patience(settings.timeouts, None)
        self.active: set[Exchange] = set()
        self.draining = False

    async def __call__(self, arrival: Arrival, endpoint: Endpoint) -> bool:
        """Serve a request; whether another may follow on its connection.

        Raises:
            ApiError: it is refused, or no engine could answer it; nothing was sent.
        """
        arrived = monotonic()
        stages, headers = self._stages, arrival.message.headers
        tenant, address = stages.authenticate(headers, arrival.client.peer)
        exchange = Exchange(arrival.request_id, tenant, endpoint.name, arrived, address)
        if self._tracing is not None:
            exchange.trace = self._tracing.begin(endpoint.path, accept.trace_context(headers))
        failure: ErrorCode | None = ErrorCode.INTERNAL_ERROR
        self.active.add(exchange)
        try:
            raw = accept.body_at_hand(headers, arrival.content, self._limits.body_bytes)
            if raw is None or len(raw) > SMALL:
                raw = await self._large(exchange, arrival, raw)
            asked_for = self._let_in(exchange, arrival, endpoint, raw)
            del raw  # the engine's body is another one, and a stream may be long
            if stages.limits.store is not None and exchange.reservation is not None:
                await stages.limits.agree(exchange.reservation, tenant)
            stages.bill.began(exchange)
            exchange.asked = asked = Asked(
                exchange.model, tenant.alias, tenant.cache_group, asked_for.body, asked_for.prompt_tokens
            )
            asked_for.body = b""
            exchange.engine = stages.admission.enter_at_once(asked, monotonic()) or await self._wait(
                exchange, asked
            )
            relay = self._relay(arrival, endpoint, exchange, asked_for)
            head = self._request_head(headers, endpoint, exchange)
            failure = await stages.attempts.run(exchange, relay, asked, head)
            if not relay.answered:
                failure = _conclude(relay, failure)
        except (asyncio.CancelledError, ConnectionError):
            # The latter while its body was still being read. An answer that failed we have cut ourselves.
            cut = exchange.relay
            failure = (cut.failure if cut is not None and cut.answered else None) or ErrorCode.CLIENT_GONE
            raise
        except ApiError as error:
            failure = error.code
            exchange.status = error.status
            raise
        finally:
            self._end(arrival.client, exchange, failure)
        stages.metrics.answered += 1
        # What the answer's head did not announce would meet the client's next request on its way.
        return not exchange.closes

    async def _large(self, exchange: Exchange, arrival: Arrival, raw: bytes | None) -> bytes:
        """The body of a request that is large, or has not come whole as `raw`.

        Raises:
            ApiError: it is too large, or too much for now, or does not arrive in time.
        """

        def take(size: int) -> None:
            if size > SMALL:
                self._bodies.take(exchange.tenant.alias, size - exchange.held)
                exchange.held = size

        if raw is None:
            return await accept.read_body(arrival, self._limits.body_bytes, self._timeouts.request_body, take)
        take(len(raw))
        return raw

    def forget_bodies(self) -> None:
        """Let go of the large bodies that no engine will be sent any more; called about every second."""
        for exchange in self.active:
            if exchange.held and exchange.relay is not None and exchange.relay.answered:
                self._forget_body(exchange)

    def _forget_body(self, exchange: Exchange) -> None:
        self._bodies.give_back(exchange.tenant.alias, exchange.held)
        exchange.held = 0
        if exchange.asked is not None:
            exchange.asked.body = b""

    def _let_in(self, exchange: Exchange, arrival: Arrival, endpoint: Endpoint, raw: bytes) -> Sanitised:
        """What `raw` asks for, and that within the limits.

        Raises:
            ApiError: it asks for what it may not have.
        """
        stages, tenant = self._stages, exchange.tenant
        exchange.bytes_in = len(raw)
        if tenant.alias in self._content_of:
            exchange.content = Content(raw, arrival.client)
        asked_for = stages.policy(raw, tenant.cache_group, endpoint.fields)
        exchange.model = model = asked_for.model
        if model not in stages.pool.models:
            raise no_model(model)
        exchange.model_label = model
        if not allowed(tenant, model):
            raise _not_allowed(model)
        exchange.stream = asked_for.stream
        exchange.prompt_estimate = asked_for.prompt_tokens
        exchange.series = series = stages.metrics.series(model, endpoint.name, tenant.priority)
        series.in_flight += 1
        exchange.reservation = stages.limits.reserve(
            tenant, exchange.client, asked_for.prompt_tokens, asked_for.answer_tokens
        )
        return asked_for

    async def _wait(self, exchange: Exchange, asked: Asked) -> Engine:
        began = monotonic()
        try:
            return await self._stages.admission.enter(asked, exchange.tenant.priority)
        finally:
            exchange.queued_seconds = monotonic() - began

    def _relay(self, arrival: Arrival, endpoint: Endpoint, exchange: Exchange, asked_for: Sanitised) -> Relay:
        client, message = arrival.client, arrival.message
        series = exchange.series
        assert series is not None  # noqa: S101 - set before admission
        chunked = message.version != _HTTP_1_0
        name = exchange.request_id.encode()
        fields = [b"X-Request-Id: ", name, b"\r\n", self._stages.limits.fields(exchange.tenant)]
        if endpoint.form is ANTHROPIC:
            fields += (b"request-id: ", name, b"\r\n")
        if self._cors.allows:
            lines = self._cors.lines(message.headers)
            fields += ("{}: {}\r\n".format(*line).encode() for line in lines.items())
        # Nobody here goes on to another protocol, as a client could take it that asks for one.
        exchange.closes = closes = message.should_close or message.upgrade or not chunked or self.draining
        if closes:
            fields.append(b"Connection: close\r\n")
        patience = self._patience[exchange.tenant.priority] if exchange.stream else self._whole
        relay: Relay
        sink = exchange.content or client
        events = endpoint.events
        if exchange.stream and events is not None:
            relay = StreamRelay(
                sink,
                fields=b"".join(fields),
                patience=patience,
                observer=series,
                events=lambda: events(asked_for.keep_final, asked_for.keep_all, asked_for.answers),
                error_event=endpoint.form.event,
                chunked=chunked,
            )
        else:
            relay = Relay(sink, b"".join(fields), patience, series, chunked)
        client.relay = exchange.relay = relay
        if client.paused_at:
            # The answer before is not read yet.
            relay.client_paused()
        return relay

    def _request_head(self, headers: CIMultiDictProxy[str], endpoint: Endpoint, exchange: Exchange) -> bytes:
        # Two requests of one identifier must not meet inside an engine: a client's is made unique for it.
        name = exchange.request_id
        if X_REQUEST_ID in headers:
            name = f"{name}-{accept.new_id()[:8]}"
        trace = exchange.trace.to_engine() if exchange.trace else accept.traceparent(headers)
        return b"".join((endpoint.path.encode(), _NAMED, name.encode(), b"\r\n", trace))

    def _end(self, client: ClientConnection, exchange: Exchange, failure: ErrorCode | None) -> None:
        self.active.discard(exchange)
        if exchange.held:
            self._forget_body(exchange)
        relay = exchange.relay
        detail = ""
        if relay is not None:
            detail = relay.detail
            relay.abandon()
            client.relay = None
            if failure is ErrorCode.INTERNAL_ERROR and relay.opened:
                # Whatever were said now would be read as more of this answer, or as the next one.
                client.drop()
        now = monotonic()
        self._stages.settle(exchange, failure, now, detail)
        if exchange.content is not None:
            exchange.content.write(exchange.request_id, exchange.tenant.alias)
        if exchange.engine is not None:
            if relay is not None and relay.left:
                exchange.engine.held(now - exchange.arrived - exchange.queued_seconds)
            self._stages.admission.leave(exchange.engine, now)


def no_model(model: str) -> ApiError:
    """The refusal of a model that is not there."""
    message = f"The model {model[:128]!r} does not exist. {_WHERE}"
    return ApiError(ErrorCode.MODEL_NOT_FOUND, message, param="model")


def _not_allowed(model: str) -> ApiError:
    message = f"This API key may not use the model {model!r}. {_WHERE}"
    return ApiError(ErrorCode.MODEL_NOT_ALLOWED, message, param="model")


def _conclude(relay: Relay, failure: ErrorCode | None) -> ErrorCode | None:
    """End a request that the last attempt left without an answer; the failure that it ends with.

    Raises:
        ApiError: the request failed before anything was sent.
    """
    error = _refusal(relay, failure)
    if error is None:
        return failure
    if relay.opened:
        relay.close_with(error.code)
        return error.code
    try:
        raise error
    finally:
        # Its traceback holds this frame, and that all of the request.
        del error


def _refusal(relay: Relay, failure: ErrorCode | None) -> ApiError | None:
    if failure is not None:
        headers = {"Retry-After": "1"} if status_of(failure) == 503 else None
        return ApiError(failure, message_of(failure), headers=headers)
    if relay.head is not None and relay.head.status != 200:
        return engine_refusal(relay.head.status, relay.body)
    return None


def _patience(timeouts: Timeouts, priority: Priority | None) -> Patience:
    """How long to wait for a stream of a class; with None, for an answer in one piece."""
    return Patience(
        first_byte=getattr(timeouts.first_byte, priority) if priority else None,
        between_chunks=timeouts.between_chunks,
        total=timeouts.total,
        keep_alive=timeouts.keep_alive,
    )


def allowed(tenant: Tenant, model: str) -> bool:
    """Whether `tenant` may use `model`."""
    return tenant.models is None or model in tenant.models
