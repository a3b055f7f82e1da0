"""``/v1/completions``."""

import time
from typing import Any

import msgspec
from aiohttp import web

from daemons.simulator.http import errors, logprobs, prompts
from daemons.simulator.http.collect import Collector, Gathered
from daemons.simulator.http.requests import CompletionRequest
from daemons.simulator.http.service import Service
from daemons.simulator.http.stream import DONE, EventStream
from daemons.simulator.http.usage import prompt_details, usage_of
from daemons.simulator.model.output import Finish, Sampling
from daemons.simulator.model.text import Piece, decode

_DEFAULT_MAX_TOKENS = 16
_MAX_PROMPTS = 1024


class CompletionStream:
    """The chunks of all prompts of one request; each prompt writes through a `_PromptSink`."""

    def __init__(
        self, stream: EventStream, body: CompletionRequest, head: dict[str, Any], prompt_list: list[list[int]]
    ) -> None:
        options = body.stream_options
        self._stream = stream
        self._head = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":['
        self._usage = options is not None and bool(options.include_usage)
        self._continuous = self._usage and options is not None and bool(options.continuous_usage_stats)
        self._alternatives = body.logprobs
        self._echoes = [_echo(prompt) if body.echo else "" for prompt in prompt_list]
        self._lengths = [len(prompt) for prompt in prompt_list]
        count = len(prompt_list) * (body.n or 1)
        self._n = body.n or 1
        self._generated = [0] * count
        self._written = [0] * count
        self._unfinished = count
        self._fingerprint = b""

    def sign(self, fingerprint: str) -> None:
        """Set ``system_fingerprint``, which stands in the last chunk."""
        self._fingerprint = b',"system_fingerprint":' + msgspec.json.encode(fingerprint)

    def sinks(self) -> list["_PromptSink"]:
        """One sink for each prompt."""
        return [_PromptSink(self, index * self._n) for index in range(len(self._lengths))]

    def token(self, index: int, piece: Piece, generated: int, finish: Finish | None) -> None:
        """Write the chunk of one token of choice `index`, counted over all prompts."""
        text = piece.json
        prompt = index // self._n
        if generated == 1 and self._echoes[prompt]:
            text = msgspec.json.encode(self._echoes[prompt] + piece.text)
        shown = b"null"
        if self._alternatives is not None:
            shown = msgspec.json.encode(
                logprobs.completion([piece], self._alternatives, self._written[index])
            )
            self._written[index] += len(piece.text)
        self._generated[index] = generated
        end = b'null,"stop_reason":null'
        if finish is not None:
            end = b'"%b","stop_reason":%b' % (finish.reason.encode(), msgspec.json.encode(finish.stop_reason))
        self._stream.send(
            b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b,"prompt_token_ids":null,'
            b'"token_ids":null}]%b}\n\n' % (self._head, index, text, shown, end, self._tail(index, finish))
        )
        if finish is not None:
            self._unfinished -= 1
            if not self._unfinished:
                self._finish()

    def failed(self, error: Exception) -> None:
        """The engine died: say so once, then end as vLLM does."""
        if self._unfinished:
            self._unfinished = 0
            self._stream.send(errors.event_of(errors.internal(str(error))))
            self._stream.send(DONE)
            self._stream.close()

    def _tail(self, index: int, finish: Finish | None) -> bytes:
        if self._continuous:
            return b',"usage":' + self._counts(self._lengths[index // self._n], self._generated[index])
        return self._fingerprint if finish is not None and not self._usage else b""

    def _counts(self, prompt: int, generated: int) -> bytes:
        return b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % (
            prompt,
            prompt + generated,
            generated,
        )

    def _finish(self) -> None:
        if self._usage:
            counts = self._counts(sum(self._lengths), sum(self._generated))
            self._stream.send(b'%b],"usage":%b%b}\n\n' % (self._head, counts, self._fingerprint))
        self._stream.send(DONE)
        self._stream.close()


class _PromptSink:
    """The sink of one prompt: numbers its choices within the whole answer."""

    def __init__(self, stream: CompletionStream, first: int) -> None:
        self._stream = stream
        self._first = first

    def token(self, choice: int, piece: Piece, generated: int, finish: Finish | None) -> None:
        """See `Sink`."""
        self._stream.token(self._first + choice, piece, generated, finish)

    def failed(self, error: Exception) -> None:
        """See `Sink`."""
        self._stream.failed(error)


def _echo(prompt: list[int]) -> str:
    return decode(prompt)


class Completions:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Continue one prompt or several."""
        service = self._service
        body = await service.read(request, CompletionRequest)
        self._check(body)
        name = service.name_of(body.model)
        prompt_list = self._prompts(body)
        sampling = self._sampling(body, prompt_list)
        head = {"id": service.request_id(request, "cmpl"), "created": int(time.time()), "model": name}
        if body.stream:
            return await self._stream(request, body, head, prompt_list, sampling)
        return await self._whole(body, head, prompt_list, sampling)

    def _check(self, body: CompletionRequest) -> None:
        if not body.prompt:
            text = "Either prompt or prompt_embeds must be provided and non-empty."
            raise errors.bad_request(text, "prompt")
        if body.stream_options is not None and not body.stream:
            text = "Stream options can only be defined when `stream=True`."
            raise errors.bad_request(text, "stream_options")

    def _prompts(self, body: CompletionRequest) -> list[list[int]]:
        limit = self._service.identity.max_model_len
        given: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        if isinstance(given[0], int):
            given = [given]
        if len(given) > _MAX_PROMPTS:
            raise errors.bad_request(f"at most {_MAX_PROMPTS} prompts, got {len(given)}.", "prompt")
        return [
            prompts.encode_prompt(each, limit) if isinstance(each, str) else prompts.check_tokens(each, limit)
            for each in given
        ]

    def _sampling(self, body: CompletionRequest, prompt_list: list[list[int]]) -> Sampling:
        limit = self._service.identity.max_model_len
        asked = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        longest = max(map(len, prompt_list))
        if body.logprobs is not None:
            prompts.check_logprobs(body.logprobs)
        return prompts.sampling_of(body, prompts.bound_output(asked, "max_tokens", longest, limit))

    async def _stream(
        self,
        request: web.Request,
        body: CompletionRequest,
        head: dict[str, Any],
        prompt_list: list[list[int]],
        sampling: Sampling,
    ) -> web.StreamResponse:
        service = self._service
        events = service.stream(request)
        shown = {"id": head["id"], "object": "text_completion", **head}
        chunks = CompletionStream(events, body, shown, prompt_list)
        chunks.sign(service.fingerprint)
        scripts = [service.scripts(prompt, body.n or 1, body.seed) for prompt in prompt_list]
        accepted = service.submit(prompt_list, sampling, chunks.sinks(), scripts, body.cache_salt)
        try:
            return await events.serve()
        finally:
            service.release(accepted)

    async def _whole(
        self,
        body: CompletionRequest,
        head: dict[str, Any],
        prompt_list: list[list[int]],
        sampling: Sampling,
    ) -> web.Response:
        service = self._service
        count = body.n or 1
        sinks = [Collector(count) for _ in prompt_list]
        scripts = [service.scripts(prompt, count, body.seed) for prompt in prompt_list]
        accepted = service.submit(prompt_list, sampling, sinks, scripts, body.cache_salt)
        try:
            done = [await sink.wait() for sink in sinks]
        finally:
            service.release(accepted)
        choices = [
            self._choice(body, index * count + each, prompt, gathered)
            for index, (prompt, gathered_list) in enumerate(zip(prompt_list, done, strict=True))
            for each, gathered in enumerate(gathered_list)
        ]
        details = prompt_details(accepted[0], created=None) if service.identity.prompt_details else None
        used = sum(sink.generated for sink in sinks)
        answer = {
            "id": head["id"],
            "object": "text_completion",
            "created": head["created"],
            "model": head["model"],
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": service.fingerprint,
            "usage": usage_of(sum(map(len, prompt_list)), used, details),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
        return errors.reply(answer)

    def _choice(
        self, body: CompletionRequest, index: int, prompt: list[int], gathered: Gathered
    ) -> dict[str, Any]:
        finish = gathered.finish or Finish("stop")
        echo = _echo(prompt) if body.echo else ""
        shown = None
        if body.logprobs is not None:
            shown = logprobs.completion(gathered.pieces, body.logprobs, len(echo))
        return {
            "index": index,
            "text": echo + gathered.text,
            "logprobs": shown,
            "finish_reason": finish.reason,
            "stop_reason": finish.stop_reason,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "routed_experts": None,
        }
