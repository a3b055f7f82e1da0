"""Clients of every kind: patient and not, within their limits and over them, right and wrong."""

import asyncio
import random
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import aiohttp

_WORDS = [
    "the",
    "model",
    "answers",
    "what",
    "it",
    "was",
    "asked",
    "and",
    "counts",
    "each",
    "token",
    "that",
    "it",
    "makes",
    "on",
    "the",
    "way",
]


class Load:
    """Requests to a gateway on `port`, for `models` and sometimes for one that is `broken`, by `keys`."""

    def __init__(self, port: int, models: Sequence[str], broken: str, keys: Sequence[str]) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._models = models
        self._broken = broken
        self._keys = keys
        self._chance = random.Random(1)  # noqa: S311 - traffic, no secrets
        self._end = 0.0

    def run(self, seconds: float, clients: int) -> None:
        """Send for `seconds`; what is under way then is still answered."""
        asyncio.run(self._run(seconds, clients))

    async def _run(self, seconds: float, clients: int) -> None:
        self._end = asyncio.get_running_loop().time() + seconds
        async with aiohttp.ClientSession(self._url) as session, asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(session, self._keys[number % len(self._keys)], number))
            group.create_task(self._wrong(session))

    def _goes_on(self) -> bool:
        return asyncio.get_running_loop().time() < self._end

    async def _client(self, session: aiohttp.ClientSession, key: str, number: int) -> None:
        system = " ".join(_WORDS * (3 + number % 5))
        while self._goes_on():
            words = self._chance.choices(_WORDS, k=self._chance.randint(5, 60))
            await self._ask(session, key, system, " ".join(words))
            await asyncio.sleep(self._chance.expovariate(4))

    async def _ask(self, session: aiohttp.ClientSession, key: str, system: str, words: str) -> None:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": words}]
        body: dict[str, Any] = {
            "model": self._chance.choice(self._models),
            "messages": messages,
            "max_tokens": self._chance.randint(8, 120),
            "stream": self._chance.random() < 0.8,
        }
        impatient = self._chance.random() < 0.03
        timeout = aiohttp.ClientTimeout(total=0.15 if impatient else 60)
        headers = {"Authorization": f"Bearer {key}"}
        try:
            async with session.post(
                "/v1/chat/completions", json=body, headers=headers, timeout=timeout
            ) as answer:
                await answer.read()
                if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
                    await asyncio.sleep(self._chance.uniform(0.5, 2))
        except TimeoutError:
            pass

    async def _wrong(self, session: aiohttp.ClientSession) -> None:
        """What fails: no key, a wrong model, a wrong path, no JSON, a model whose engine takes nobody."""
        right = {"Authorization": f"Bearer {self._keys[0]}"}
        body = {"model": self._models[0], "messages": [{"role": "user", "content": "Hi"}]}
        requests: list[tuple[str, dict[str, Any]]] = [
            ("/v1/chat/completions", {"json": body, "headers": {"Authorization": "Bearer nobody"}}),
            ("/v1/chat/completions", {"json": {**body, "model": "unknown"}, "headers": right}),
            (
                "/v1/chat/completions",
                {"data": b"{", "headers": {**right, "Content-Type": "application/json"}},
            ),
            ("/v1/chat/completions", {"json": {**body, "model": self._broken}, "headers": right}),
            ("/v1/nothing", {"json": body, "headers": right}),
        ]
        while self._goes_on():
            path, more = self._chance.choice(requests)
            async with session.post(path, **more) as answer:
                await answer.read()
            await asyncio.sleep(0.2)
