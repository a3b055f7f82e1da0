"""``/v1/responses``: OpenAI's newer form. Nothing is stored, so no earlier response is ever found."""

import time
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from daemons.simulator.http import errors, prompts
from daemons.simulator.http.collect import Collector
from daemons.simulator.http.named_events import NamedEvents
from daemons.simulator.http.requests import ResponsesRequest
from daemons.simulator.http.service import Service, random_id
from daemons.simulator.model.output import Finish, Sampling
from daemons.simulator.model.text import Piece

if TYPE_CHECKING:
    from daemons.simulator.model.engine import Request


class Shape:
    """The response object of one request, in each of its states."""

    def __init__(self, body: ResponsesRequest, name: str, sampling: Sampling, prompt_tokens: int) -> None:
        self._body = body
        self._name = name
        self._sampling = sampling
        self._prompt_tokens = prompt_tokens
        self._id = f"resp_{random_id()}"
        self._created = int(time.time())
        self.item_id = f"msg_{random_id()}"

    def part(self, text: str, logprobs: list[object] | None) -> dict[str, Any]:
        """The content part that holds the text."""
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}

    def item(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        """The output item that holds the part."""
        head = {"id": self.item_id, "content": content, "role": "assistant", "status": status}
        return {**head, "type": "message", "phase": None}

    def begun(self) -> dict[str, Any]:
        """The response before its first token."""
        return self._response("in_progress", [], None, None)

    def done(self, text: str, generated: int, finish: Finish, cached: int) -> dict[str, Any]:
        """The finished response."""
        cut = finish.reason == "length"
        usage = {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": cached,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": generated,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": self._prompt_tokens + generated,
        }
        why = {"reason": "max_output_tokens"} if cut else None
        items = [self.item([self.part(text, None)], "completed")]
        return self._response("incomplete" if cut else "completed", items, usage, why)

    def _response(
        self,
        status: str,
        output: list[dict[str, Any]],
        usage: dict[str, Any] | None,
        incomplete: dict[str, Any] | None,
    ) -> dict[str, Any]:
        body = self._body
        return {
            "id": self._id,
            "created_at": self._created,
            "incomplete_details": incomplete,
            "instructions": body.instructions,
            "metadata": body.metadata,
            "model": self._name,
            "object": "response",
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "background": False,
            "max_output_tokens": self._sampling.max_tokens,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": usage,
            "user": body.user,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


class ResponseStream:
    """A sink that writes the events of one response."""

    def __init__(self, events: NamedEvents, shape: Shape) -> None:
        self._events = events
        self._shape = shape
        self._text: list[str] = []
        self._number = 0
        self._place = b'"item_id":"%b","logprobs":[],"output_index":0' % shape.item_id.encode()
        self.request: Request | None = None

    def _begin(self) -> None:
        for name in ("response.created", "response.in_progress"):
            self._send(name, {"response": self._shape.begun()})

    def token(self, choice: int, piece: Piece, generated: int, finish: Finish | None) -> None:
        """Write the token's event, if it shows; see `Sink`."""
        if generated == 1:
            self._begin()
            self._open(choice)
        if piece.text:
            self._text.append(piece.text)
            self._events.send_json(
                b"response.output_text.delta",
                b'{"content_index":0,"delta":%b,%b,"sequence_number":%d,"type":"response.output_text.delta"}'
                % (piece.json, self._place, self._number),
            )
            self._number += 1
        if finish is not None:
            self._end(generated, finish)

    def failed(self, error: Exception) -> None:
        """The engine died: the body breaks off; see `Sink`."""
        self._events.abandon()

    def _open(self, index: int) -> None:
        item = self._shape.item([], "in_progress")
        self._send("response.output_item.added", {"item": item, "output_index": index})
        part = self._shape.part("", [])
        self._send("response.content_part.added", {**self._at(), "part": part})

    def _end(self, generated: int, finish: Finish) -> None:
        text = "".join(self._text)
        shape = self._shape
        place = self._at()
        self._send(
            "response.output_text.done",
            {"content_index": 0, "item_id": shape.item_id, "logprobs": [], "output_index": 0},
            {"text": text},
        )
        part = shape.part(text, None)
        self._send("response.content_part.done", {**place, "part": part})
        self._send("response.output_item.done", {"item": shape.item([part], "completed"), "output_index": 0})
        cached = self.request.cached_tokens if self.request else 0
        self._send("response.completed", {"response": shape.done(text, generated, finish, cached)})
        self._events.close()

    def _at(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self._shape.item_id, "output_index": 0}

    def _send(self, name: str, data: dict[str, Any], after: dict[str, Any] | None = None) -> None:
        numbered = {**data, "sequence_number": self._number, **(after or {}), "type": name}
        self._events.send_json(name.encode(), msgspec.json.encode(numbered))
        self._number += 1


class Responses:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one input."""
        service = self._service
        body = await service.read(request, ResponsesRequest)
        name = service.name_of(body.model)
        if body.previous_response_id:
            text = f"Response with id '{body.previous_response_id}' not found."
            raise errors.ApiError(404, text, "invalid_request_error", "response_id")
        prompt = self._prompt(body)
        limit = service.identity.max_model_len
        granted = prompts.bound_output(body.max_output_tokens, "max_output_tokens", len(prompt), limit)
        sampling = Sampling(max_tokens=granted)
        shape = Shape(body, name, sampling, len(prompt))
        scripts = service.scripts(prompt, 1, None)
        if body.stream:
            events = service.stream(request)
            sink = ResponseStream(NamedEvents(events), shape)
            accepted = service.submit([prompt], sampling, [sink], [scripts])
            sink.request = accepted[0]
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
        done = collector.choices[0]
        finish = done.finish or Finish("stop")
        answer = shape.done(done.text, done.generated, finish, accepted[0].cached_tokens)
        return errors.reply(answer)

    def _prompt(self, body: ResponsesRequest) -> list[int]:
        turns = [{"role": "system", "content": body.instructions}] if body.instructions else []
        given = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
        text = prompts.render_chat([*turns, *given])
        return prompts.encode_prompt(text, self._service.identity.max_model_len)
