"""The paths of the API: an allow-list, never a pass-through."""

from collections.abc import Callable
from dataclasses import dataclass

from daemons.gateway.api.forms import OPENAI, Form
from daemons.gateway.relay.sse import EventFilter, OpenAIFilter


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An API path whose requests go to an engine.

    Attributes:
        path: as the client asks for it.
        name: short name in logs and metrics.
        form: how errors are told.
        engine_path: path at the engine.
        events: makes the filter of a stream from `keep_final` and `keep_all`; None where nothing streams.
        usage_in_stream: whether streams tell usage only when asked to.
    """

    path: str
    name: str
    form: Form
    engine_path: bytes
    events: Callable[[bool, bool], EventFilter] | None = None
    usage_in_stream: bool = False


def _openai_events(keep_final: bool, keep_all: bool) -> EventFilter:
    return OpenAIFilter(keep_final=keep_final, keep_all=keep_all)


ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint(
            "/v1/chat/completions",
            "chat",
            OPENAI,
            b"/v1/chat/completions",
            _openai_events,
            usage_in_stream=True,
        ),
        Endpoint(
            "/v1/completions", "completions", OPENAI, b"/v1/completions", _openai_events, usage_in_stream=True
        ),
    )
}
