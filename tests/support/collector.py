"""An OpenTelemetry collector for tests: takes OTLP over HTTP on a loopback port and keeps the spans."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from daemons.runtime.http import serving
from daemons.runtime.sockets import Address, listen_tcp, port_of


class Collector:
    """What was exported.

    Attributes:
        endpoint: its URL for traces.
        spans: in order of their arrival.
        status: what it answers.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.status = 200

    async def take(self, request: web.Request) -> web.Response:
        """``POST /v1/traces``."""
        exported = ExportTraceServiceRequest.FromString(await request.read())
        for resource in exported.resource_spans:
            names = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
            self.services.update(names)
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return web.Response(status=self.status)


def attributes(span: Span) -> dict[str, object]:
    """The attributes of a span."""
    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}


@contextlib.asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """A running collector."""
    made = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", made.take)
    sock = listen_tcp(Address(port=0))
    made.endpoint = f"http://127.0.0.1:{port_of(sock)}/v1/traces"
    async with serving(app, sock):
        yield made
