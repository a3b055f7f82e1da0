"""The paths of the API: an allow-list, never a pass-through."""

from collections.abc import Callable

from daemons.gateway.api.forms import ANTHROPIC, OPENAI, RESPONSES, Form
from daemons.gateway.policy.sanitise import EngineFields
from daemons.gateway.relay.choices import ChoicesFilter
from daemons.gateway.relay.sse import EventFilter, OpenAIFilter, messages_filter, responses_filter


class Endpoint:
    """An API path whose requests go to an engine, under the same path.

    Attributes:
        path: as the client asks for it.
        name: short name in logs and metrics.
        form: how errors are told.
        fields: what the engine understands there.
        events: makes the filter of a stream from `keep_final`, `keep_all` and `answers`; None where nothing
            streams.
    """

    __slots__ = ("events", "fields", "form", "name", "path")

    def __init__(
        self,
        path: str,
        name: str,
        form: Form,
        fields: EngineFields,
        events: Callable[[bool, bool, int], EventFilter] | None = None,
    ) -> None:
        self.path = path
        self.name = name
        self.form = form
        self.fields = fields
        self.events = events


def _openai(keep_final: bool, keep_all: bool, answers: int) -> EventFilter:
    if answers:
        return ChoicesFilter(keep_final=keep_final, keep_all=keep_all, answers=answers)
    return OpenAIFilter(keep_final=keep_final, keep_all=keep_all)


def _responses(_: bool, __: bool, ___: int) -> EventFilter:
    return responses_filter()


def _messages(_: bool, __: bool, ___: int) -> EventFilter:
    return messages_filter()


_CHAT = EngineFields(streams=True, usage_in_stream=True, lengths=("max_completion_tokens", "max_tokens"))
_COMPLETIONS = EngineFields(streams=True, usage_in_stream=True, lengths=("max_tokens",))
_NAMED = EngineFields(streams=True, lengths=("max_tokens",))
_STORED = EngineFields(streams=True, store=True, lengths=("max_output_tokens",))
_POOLING = EngineFields()
_PLAIN = EngineFields(cache_salt=False, metered=False)

ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", "chat", OPENAI, _CHAT, _openai),
        Endpoint("/v1/completions", "completions", OPENAI, _COMPLETIONS, _openai),
        Endpoint("/v1/responses", "responses", RESPONSES, _STORED, _responses),
        Endpoint("/v1/messages", "messages", ANTHROPIC, _NAMED, _messages),
        Endpoint("/v1/messages/count_tokens", "count_tokens", ANTHROPIC, _PLAIN),
        Endpoint("/v1/embeddings", "embeddings", OPENAI, _POOLING),
        Endpoint("/v1/rerank", "rerank", OPENAI, _POOLING),
        Endpoint("/rerank", "rerank", OPENAI, _POOLING),
        Endpoint("/v1/score", "score", OPENAI, _POOLING),
        Endpoint("/score", "score", OPENAI, _POOLING),
        Endpoint("/tokenize", "tokenize", OPENAI, _PLAIN),
        Endpoint("/detokenize", "detokenize", OPENAI, _PLAIN),
    )
}
