"""What every endpoint stands on: the engine, the names it serves, its limits."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from daemons.simulator.faults import Faults
from daemons.simulator.http import errors
from daemons.simulator.http.stream import EventStream
from daemons.simulator.model.engine import Engine, Refused, Request, Sink
from daemons.simulator.model.output import Sampling
from daemons.simulator.model.text import Piece, answer
from daemons.simulator.runner import Runner

BodyT = TypeVar("BodyT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Identity:
    """How the engine presents itself.

    Attributes:
        names: served model names; the first is the one shown.
        root: the model as it was named on the command line.
        version: the release of vLLM that is imitated.
        max_model_len: tokens of context.
        answer_tokens: mean length of an answer.
        seed: of the answers.
        keep_alive: seconds between comments on an idle stream; 0 sends none.
        request_ids: whether ``X-Request-Id`` is echoed.
        tool_choice_auto: whether a model may decide to call a tool.
        prompt_details: whether usage tells cached prompt tokens.
    """

    names: tuple[str, ...]
    root: str
    version: str = "0.32.0"
    max_model_len: int = 8192
    answer_tokens: int = 120
    seed: int = 0
    keep_alive: float = 0.0
    request_ids: bool = False
    tool_choice_auto: bool = False
    prompt_details: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        """``system_fingerprint``: the release and a hash of what shapes the answers."""
        shape = f"{self.root} {self.max_model_len} {self.seed}"
        return f"vllm-{self.version}-{hashlib.sha256(shape.encode()).hexdigest()[:8]}"


class Service:
    """The engine as the endpoints see it."""

    def __init__(self, identity: Identity, engine: Engine, runner: Runner, faults: Faults) -> None:
        self.identity = identity
        self.engine = engine
        self.runner = runner
        self.faults = faults
        self.draining = False
        self.fingerprint = identity.fingerprint

    async def read(self, request: web.Request, model: type[BodyT]) -> BodyT:
        """The body of `request`.

        Raises:
            ApiError: it is no JSON, or does not fit `model`.
        """
        if request.content_type != "application/json":
            raise errors.ApiError(
                400,
                "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
                "Bad Request",
                native=False,
            )
        data = await request.read()
        if not data:
            missing = {"type": "missing", "loc": (), "msg": "Field required", "input": None}
            raise errors.malformed([missing])
        return self._parse(data, model)

    def _parse(self, data: bytes, model: type[BodyT]) -> BodyT:
        try:
            value = errors.loads(data)
        except ValueError as error:
            raise errors.not_json(error) from None
        if not isinstance(value, dict):
            raise errors.malformed([errors.not_an_object(value)])
        try:
            return model.model_validate(value)
        except ValidationError as error:
            raise errors.from_validation(error) from None

    def name_of(self, asked: str | None) -> str:
        """The model name to show for the one that was asked for.

        Raises:
            ApiError: no such model is served.
        """
        if not asked:
            return self.identity.names[0]
        if asked not in self.identity.names:
            raise errors.not_found_model(asked, self.identity.names)
        return asked

    def request_id(self, request: web.Request, prefix: str) -> str:
        """The id of the answer to `request`."""
        return f"{prefix}-{request.headers.get('X-Request-Id') or random_id()}"

    def submit(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        sinks: Sequence[Sink],
        scripts: Sequence[list[Iterator[Piece]]],
        salt: str | None = None,
    ) -> list[Request]:
        """Hand prompts to the engine; nothing is sent before the caller suspends.

        Raises:
            ApiError: the engine is full, dying, or going down.
        """
        if self.draining or self.runner.dead.is_set():
            raise errors.internal(errors.DRAINING)
        if self.faults.take_busy():
            raise errors.busy()
        try:
            self.engine.admit(len(prompts), sum(map(len, prompts)))
        except Refused as refused:
            text = errors.BUSY if refused.reason == "max_num_queued_reqs" else errors.BACKLOG
            raise errors.busy(text) from None
        now = asyncio.get_running_loop().time()
        salted = hash(salt) if salt else 0
        accepted = [
            self.engine.submit(prompt, texts, sampling, sink, now=now, salt=salted)
            for prompt, texts, sink in zip(prompts, scripts, sinks, strict=True)
        ]
        self.runner.wake()
        return accepted

    def release(self, requests: Sequence[Request]) -> None:
        """The client has its answer, or is gone."""
        for request in requests:
            self.engine.abort(request)
        self.runner.wake()

    def stream(self, request: web.Request) -> EventStream:
        """The body of a streamed answer to `request`."""
        return EventStream(request, self.faults.take_stream(), self.identity.keep_alive)

    def scripts(self, prompt: Sequence[int], count: int, seed: int | None) -> list[Iterator[Piece]]:
        """`count` answers to `prompt`, the same again for the same prompt, seed and server."""
        digest = hashlib.blake2b(repr((self.identity.seed, seed, prompt)).encode(), digest_size=8)
        base = int.from_bytes(digest.digest(), "big")
        return [answer(base + index, self.identity.answer_tokens) for index in range(count)]


def random_id() -> str:
    """Sixteen hexadecimal digits, as vLLM's ids have."""
    return uuid.uuid4().hex[:16]
