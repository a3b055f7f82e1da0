"""``/v1/chat/completions``."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from daemons.simulator.http import errors, logprobs, prompts, tools
from daemons.simulator.http.collect import Collector, Gathered
from daemons.simulator.http.requests import ChatRequest
from daemons.simulator.http.service import Service
from daemons.simulator.http.stream import DONE, EventStream
from daemons.simulator.http.usage import prompt_details, usage_of
from daemons.simulator.model.output import Finish, Sampling
from daemons.simulator.model.text import Piece

if TYPE_CHECKING:
    from daemons.simulator.model.engine import Request


@dataclass(frozen=True, slots=True)
class _Job:
    """One conversation, ready for the engine; `head` is what every chunk begins with."""

    body: ChatRequest
    head: dict[str, Any]
    prompt: list[int]
    sampling: Sampling
    scripts: list[Iterator[Piece]]


class ChatStream:
    """A sink that writes chat chunks. What does not change from chunk to chunk is encoded once."""

    def __init__(
        self, stream: EventStream, body: ChatRequest, head: dict[str, Any], prompt_tokens: int
    ) -> None:
        options = body.stream_options
        self._stream = stream
        self._choices = body.n or 1
        self._head = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":['
        self._deltas = [b'{"index":%d,"delta":{"content":' % index for index in range(self._choices)]
        self._usage = options is not None and bool(options.include_usage)
        self._continuous = self._usage and options is not None and bool(options.continuous_usage_stats)
        self._alternatives = (body.top_logprobs or 0) if body.logprobs else None
        self._prompt_tokens = prompt_tokens
        self._generated = [0] * self._choices
        self._unfinished = self._choices
        self._fingerprint = b""
        self._calls = tools.Calls(body)
        self._begun = False
        self.detailed: Request | None = None
        """The request whose cached tokens the last usage tells."""

    def sign(self, fingerprint: str) -> None:
        """Set ``system_fingerprint``, which stands in the last chunk."""
        self._fingerprint = b',"system_fingerprint":' + msgspec.json.encode(fingerprint)

    def token(self, choice: int, piece: Piece, generated: int, finish: Finish | None) -> None:
        """Write one chunk; see `Sink`."""
        if not self._begun:
            self._begin()
        self._generated[choice] = generated
        delta = self._calls.delta(choice, piece)
        if delta is None:
            body = self._deltas[choice] + piece.json + b"}"
        else:
            body = b'{"index":%d,"delta":%b' % (choice, delta)
        self._stream.send(
            b"%b%b%b%b}]%b}\n\n"
            % (self._head, body, self._logprobs(piece), self._end(finish), self._tail(choice, finish))
        )
        if finish is not None:
            self._unfinished -= 1
            if not self._unfinished:
                self._finish()

    def failed(self, error: Exception) -> None:
        """The engine died: say so, then end as vLLM does; see `Sink`."""
        self._stream.send(errors.event_of(errors.internal(str(error))))
        self._stream.send(DONE)
        self._stream.close()

    def _begin(self) -> None:
        self._begun = True
        for index in range(self._choices):
            usage = self._usage_now(0) if self._continuous else b""
            self._stream.send(
                b'%b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
                b'%b,"prompt_token_ids":null,"prompt_text":null}\n\n' % (self._head, index, usage)
            )

    def _logprobs(self, piece: Piece) -> bytes:
        if self._alternatives is None:
            return b',"logprobs":null'
        content = logprobs.chat(piece, self._alternatives)
        return b',"logprobs":' + msgspec.json.encode({"content": [content]})

    def _end(self, finish: Finish | None) -> bytes:
        if finish is None:
            return b',"finish_reason":null,"token_ids":null'
        reason = self._calls.finish_reason(finish)
        return b',"finish_reason":"%b","stop_reason":%b,"token_ids":null' % (
            reason.encode(),
            msgspec.json.encode(finish.stop_reason),
        )

    def _tail(self, choice: int, finish: Finish | None) -> bytes:
        if self._continuous:
            return self._usage_now(self._generated[choice])
        return self._fingerprint if finish is not None and not self._usage else b""

    def _usage_now(self, generated: int) -> bytes:
        return (
            b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,'
            b'"completion_tokens_details":null}'
            % (self._prompt_tokens, self._prompt_tokens + generated, generated)
        )

    def _finish(self) -> None:
        if self._usage:
            total = sum(self._generated)
            usage: dict[str, Any] = {
                "prompt_tokens": self._prompt_tokens,
                "total_tokens": self._prompt_tokens + total,
                "completion_tokens": total,
            }
            if self.detailed is not None:
                usage["prompt_tokens_details"] = prompt_details(self.detailed, created=0)
            encoded = msgspec.json.encode(usage)
            self._stream.send(b'%b],"usage":%b%b}\n\n' % (self._head, encoded, self._fingerprint))
        self._stream.send(DONE)
        self._stream.close()


class Chat:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one conversation."""
        service = self._service
        body = await service.read(request, ChatRequest)
        name = service.name_of(body.model)
        self._check(body)
        prompt, sampling = self._prepare(body)
        scripts = tools.scripts(body, service.identity.seed) or service.scripts(
            prompt, body.n or 1, body.seed
        )
        head = {"id": service.request_id(request, "chatcmpl"), "created": int(time.time()), "model": name}
        job = _Job(body, head, prompt, sampling, scripts)
        return await (self._stream(request, job) if body.stream else self._whole(job))

    def _check(self, body: ChatRequest) -> None:
        if body.stream_options is not None and not body.stream:
            text = "Stream options can only be defined when `stream=True`."
            raise errors.bad_request(text, "stream_options")
        if body.top_logprobs and not body.logprobs:
            text = "when using `top_logprobs`, `logprobs` must be set to true."
            raise errors.bad_request(text, "top_logprobs")
        tools.check(body, auto=self._service.identity.tool_choice_auto)

    def _prepare(self, body: ChatRequest) -> tuple[list[int], Sampling]:
        limit = self._service.identity.max_model_len
        prompt = prompts.encode_prompt(prompts.render_chat(body.messages), limit)
        newer = body.max_completion_tokens is not None
        asked = body.max_completion_tokens if newer else body.max_tokens
        param = "max_completion_tokens" if newer else "max_tokens"
        sampling = prompts.sampling_of(body, prompts.bound_output(asked, param, len(prompt), limit))
        if body.logprobs:
            prompts.check_logprobs(body.top_logprobs or 0)
        return prompt, sampling

    async def _stream(self, request: web.Request, job: _Job) -> web.StreamResponse:
        service = self._service
        events = service.stream(request)
        shown = {"id": job.head["id"], "object": "chat.completion.chunk", **job.head}
        sink = ChatStream(events, job.body, shown, len(job.prompt))
        sink.sign(service.fingerprint)
        accepted = service.submit([job.prompt], job.sampling, [sink], [job.scripts], job.body.cache_salt)
        sink.detailed = accepted[0] if service.identity.prompt_details else None
        try:
            return await events.serve()
        finally:
            service.release(accepted)

    async def _whole(self, job: _Job) -> web.Response:
        service = self._service
        head = job.head
        sink = Collector(len(job.scripts))
        accepted = service.submit([job.prompt], job.sampling, [sink], [job.scripts], job.body.cache_salt)
        try:
            choices = await sink.wait()
        finally:
            service.release(accepted)
        details = prompt_details(accepted[0], created=0) if service.identity.prompt_details else None
        answer = {
            "id": head["id"],
            "object": "chat.completion",
            "created": head["created"],
            "model": head["model"],
            "choices": [self._choice(job.body, index, each) for index, each in enumerate(choices)],
            "service_tier": None,
            "system_fingerprint": service.fingerprint,
            "usage": usage_of(len(job.prompt), sink.generated, details),
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
        return errors.reply(answer)

    def _choice(self, body: ChatRequest, index: int, gathered: Gathered) -> dict[str, Any]:
        calls = tools.Calls(body)
        finish = gathered.finish or Finish("stop")
        shown = None
        if body.logprobs:
            shown = {"content": [logprobs.chat(piece, body.top_logprobs or 0) for piece in gathered.pieces]}
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": calls.content(gathered.text),
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
                **calls.whole(gathered.text),
                "reasoning": None,
            },
            "logprobs": shown,
            "finish_reason": calls.finish_reason(finish),
            "stop_reason": finish.stop_reason,
            "token_ids": None,
            "routed_experts": None,
        }
