"""OpenTelemetry spans: one of the gateway for every request, and one within it for its engine.

Needs the optional extra ``otel``, and is only imported where ``tracing.endpoint`` is set. A thread of the SDK
exports the spans, in batches, out of a bounded queue: a collector that fails costs spans, no request.
Attributes follow the semantic conventions for generative AI where these have a name.
"""

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from daemons.gateway.history import Record
from daemons.runtime.version import VERSION

_TIMEOUT = 5.0
_propagator = TraceContextTextMapPropagator()


class Trace:
    """The spans of one request."""

    def __init__(self, tracing: "Tracing", path: str, headers: Mapping[str, str]) -> None:
        self._tracer = tracing.tracer
        context = _propagator.extract(headers)
        self._request = self._tracer.start_span(f"POST {path}", context, SpanKind.SERVER)
        self._request.set_attribute("url.path", path)
        self._engine: Span | None = None

    def to_engine(self) -> bytes:
        """The header lines that make the engine's spans children of ours."""
        context = set_span_in_context(self._request)
        self._engine = self._tracer.start_span("engine", context, SpanKind.CLIENT)
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, set_span_in_context(self._engine))
        return b"".join(f"{name}: {value}\r\n".encode() for name, value in carrier.items())

    def end(self, record: Record) -> None:
        """The request has ended as `record` says."""
        failed = record.status >= 500
        if self._engine is not None:
            _end(
                self._engine,
                {"llm.engine": record.engine or "", "llm.retries": record.retries},
                record,
                failed,
            )
        attributes: dict[str, str | int | float] = {
            "http.request.method": "POST",
            "http.response.status_code": record.status,
            "llm.request_id": record.request_id,
            "llm.key": record.key,
            "llm.endpoint": record.endpoint,
            "llm.class": record.priority,
            "llm.stream": record.stream,
            "llm.queue_ms": record.queue_ms,
            "gen_ai.request.model": record.model,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
        }
        if record.ttft_ms is not None:
            attributes["llm.ttft_ms"] = record.ttft_ms
        _end(self._request, attributes, record, failed)


def _end(span: Span, attributes: dict[str, str | int | float], record: Record, failed: bool) -> None:
    span.set_attributes({**attributes, "llm.outcome": record.outcome})
    if record.outcome != "ok":
        span.set_attribute("error.type", record.outcome)
    if failed:
        span.set_status(Status(StatusCode.ERROR, record.outcome))
    span.end()


class Tracing:
    """Begins traces and exports them to an OTLP collector.

    Args:
        endpoint: the collector's URL for traces over HTTP, for example ``http://127.0.0.1:4318/v1/traces``.
    """

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create({"service.name": "llm-gateway", "service.version": VERSION})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("daemons.gateway", VERSION)

    def begin(self, path: str, headers: Mapping[str, str]) -> Trace:
        """A request for `path` has come; its client's trace, if `headers` name one, goes on."""
        return Trace(self, path, headers)

    def close(self) -> None:
        """Export what waits; blocks for some seconds where the collector does not answer."""
        self._provider.shutdown()
