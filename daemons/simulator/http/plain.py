"""The endpoints that ask nothing of the engine: health, models, tokens, embeddings."""

import base64
import math
import random
import struct
import time
from typing import Any

from aiohttp import web

from daemons.simulator.http import errors, prompts
from daemons.simulator.http.requests import (
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from daemons.simulator.http.service import Identity, Service, random_id
from daemons.simulator.model.text import decode, encode

_DIMENSIONS = 384


class Plain:
    """These endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, _: web.Request) -> web.Response:
        """200 for as long as the process lives: a hang does not show."""
        return web.Response()

    async def version(self, _: web.Request) -> web.Response:
        """The release that is imitated."""
        return errors.reply({"version": self._service.identity.version})

    async def load(self, _: web.Request) -> web.Response:
        """``server_load``, which vLLM counts only with ``--enable-server-load-tracking``."""
        return errors.reply({"server_load": 0})

    async def models(self, _: web.Request) -> web.Response:
        """The served names."""
        identity = self._service.identity
        now = int(time.time())
        return errors.reply(
            {"object": "list", "data": [_card(name, identity, now) for name in identity.names]}
        )

    async def tokenize(self, request: web.Request) -> web.Response:
        """Text or a conversation as token ids."""
        body = await self._service.read(request, TokenizeRequest)
        if body.prompt is None and body.messages is None:
            given = dict.fromkeys(body.model_fields_set)
            raise errors.malformed([_missing("prompt", given), _missing("messages", given)])
        self._service.name_of(body.model)
        text = body.prompt if body.prompt is not None else prompts.render_chat(body.messages or [])
        tokens = encode(text)
        strings = [decode([token]) for token in tokens] if body.return_token_strs else None
        limit = self._service.identity.max_model_len
        return errors.reply(
            {"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": strings}
        )

    async def detokenize(self, request: web.Request) -> web.Response:
        """Token ids as text."""
        body = await self._service.read(request, DetokenizeRequest)
        self._service.name_of(body.model)
        return errors.reply({"prompt": decode(body.tokens)})

    async def embeddings(self, request: web.Request) -> web.Response:
        """A unit vector for each input: equal for equal text, and meaning nothing."""
        body = await self._service.read(request, EmbeddingRequest)
        name = self._service.name_of(body.model)
        inputs = _inputs(body)
        data = [
            {"index": index, "object": "embedding", "embedding": _vector(tokens, body)}
            for index, tokens in enumerate(inputs)
        ]
        used = sum(map(len, inputs))
        usage = {
            "prompt_tokens": used,
            "total_tokens": used,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        }
        head = {"id": f"embd-{random_id()}", "object": "list", "created": int(time.time()), "model": name}
        return errors.reply({**head, "data": data, "usage": usage})


def _missing(field: str, given: dict[str, Any]) -> dict[str, Any]:
    return {"type": "missing", "loc": (field,), "msg": "Field required", "input": given}


def _inputs(body: EmbeddingRequest) -> list[list[int]]:
    if isinstance(body.input, str):
        return [encode(body.input)]
    if body.input and isinstance(body.input[0], int):
        return [body.input]
    return [_tokens(each) for each in body.input]


def _tokens(given: str | int | list[int]) -> list[int]:
    if isinstance(given, str):
        return encode(given)
    return [given] if isinstance(given, int) else given


def _vector(tokens: list[int], body: EmbeddingRequest) -> list[float] | str:
    source = random.Random(hash(tuple(tokens)))  # noqa: S311 - numbers for show
    raw = [source.gauss(0, 1) for _ in range(body.dimensions or _DIMENSIONS)]
    length = math.sqrt(sum(value * value for value in raw))
    unit = [value / length for value in raw]
    if body.encoding_format == "float":
        return unit
    return base64.b64encode(struct.pack(f"<{len(unit)}f", *unit)).decode()


def _card(name: str, identity: Identity, now: int) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{random_id()}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": now,
        "owned_by": "vllm",
        "root": identity.root,
        "parent": None,
        "max_model_len": identity.max_model_len,
        "permission": [permission],
    }
