"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's form."""

from typing import Any

from aiohttp import web

from daemons.simulator.http import errors, prompts
from daemons.simulator.http.collect import Collector
from daemons.simulator.http.named_events import NamedEvents
from daemons.simulator.http.requests import CountRequest, MessagesRequest
from daemons.simulator.http.service import Service
from daemons.simulator.model.engine import Request
from daemons.simulator.model.output import Finish, Sampling
from daemons.simulator.model.text import Piece


class MessageStream:
    """A sink that writes the events of one message."""

    def __init__(self, events: NamedEvents, head: dict[str, Any], prompt_tokens: int) -> None:
        self._events = events
        self._head = head
        self._prompt_tokens = prompt_tokens
        self._begun = False

    def token(self, choice: int, piece: Piece, generated: int, finish: Finish | None) -> None:
        """Write the token's event, if it shows; see `Sink`."""
        if not self._begun:
            self._begin()
        if piece.text:
            self._events.send_json(
                b"content_block_delta",
                b'{"type":"content_block_delta","delta":{"type":"text_delta","text":%b},"index":%d}'
                % (piece.json, choice),
            )
        if finish is not None:
            self._end(generated, finish)

    def failed(self, error: Exception) -> None:
        """The engine died; see `Sink`."""
        inner = {"type": "internal_error", "message": str(error)}
        self._events.send("error", {"type": "error", "error": inner})
        self._events.close()

    def _begin(self) -> None:
        self._begun = True
        message = {
            **self._head,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self._prompt_tokens, "output_tokens": 0},
        }
        self._events.send("message_start", {"type": "message_start", "message": message})
        block = {"type": "text", "text": ""}
        self._events.send(
            "content_block_start", {"type": "content_block_start", "content_block": block, "index": 0}
        )

    def _end(self, generated: int, finish: Finish) -> None:
        self._events.send("content_block_stop", {"type": "content_block_stop", "index": 0})
        delta = {"stop_reason": _reason(finish), "stop_sequence": finish.stop_reason}
        usage = {"input_tokens": self._prompt_tokens, "output_tokens": generated}
        self._events.send("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
        self._events.send("message_stop", {"type": "message_stop"})
        self._events.close()


def _reason(finish: Finish) -> str:
    if finish.stop_reason is not None:
        return "stop_sequence"
    return "max_tokens" if finish.reason == "length" else "end_turn"


class Messages:
    """These endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one conversation."""
        service = self._service
        body = await service.read(request, MessagesRequest)
        name = service.name_of(body.model)
        limit = service.identity.max_model_len
        prompt = self._prompt(body.messages, body.system)
        granted = prompts.bound_output(body.max_tokens, "max_completion_tokens", len(prompt), limit)
        sampling = Sampling(max_tokens=granted, stop=tuple(body.stop_sequences or ()))
        scripts = service.scripts(prompt, 1, None)
        head = {
            "id": service.request_id(request, "chatcmpl"),
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": name,
        }
        if body.stream:
            events = service.stream(request)
            sink = MessageStream(NamedEvents(events), head, len(prompt))
            accepted = service.submit([prompt], sampling, [sink], [scripts])
            try:
                return await events.serve()
            finally:
                service.release(accepted)
        collector = Collector(1)
        accepted = service.submit([prompt], sampling, [collector], [scripts])
        try:
            await collector.wait()
        finally:
            service.release(accepted)
        return errors.reply(self._whole(head, collector, accepted[0], len(prompt)))

    async def count(self, request: web.Request) -> web.Response:
        """How many tokens a conversation has."""
        body = await self._service.read(request, CountRequest)
        self._service.name_of(body.model)
        tokens = len(self._prompt(body.messages, body.system))
        answer = {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}
        return errors.reply(answer)

    def _prompt(self, messages: list[dict[str, Any]], system: object) -> list[int]:
        turns = [{"role": "system", "content": system}] if system else []
        text = prompts.render_chat([*turns, *messages])
        return prompts.encode_prompt(text, self._service.identity.max_model_len)

    def _whole(
        self, head: dict[str, Any], collector: Collector, accepted: Request, prompt_tokens: int
    ) -> dict[str, Any]:
        gathered = collector.choices[0]
        finish = gathered.finish or Finish("stop")
        usage = {"input_tokens": prompt_tokens, "output_tokens": gathered.generated}
        if self._service.identity.prompt_details:
            cached = accepted.cached_tokens
            usage = {
                "input_tokens": prompt_tokens - cached,
                "output_tokens": gathered.generated,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": cached,
            }
        stop = {} if finish.stop_reason is None else {"stop_sequence": finish.stop_reason}
        content = [{"type": "text", "text": gathered.text}]
        return {**head, "content": content, "stop_reason": _reason(finish), **stop, "usage": usage}
