"""Limits of keys and addresses as clients meet them."""

import asyncio
import contextlib
import json
import random
import re
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.fake_engine import (
    END,
    STREAM_HEAD,
    Call,
    FakeEngine,
    answer_chat,
    delta,
    event,
    usage,
)
from tests.support.gateway import KEY, Running, gateway, idle, until, write_key

CHAT = "/v1/chat/completions"


def limited(tmp_path: Path, **limits: int) -> None:
    write_key(tmp_path / "keys.d", "team", limits=limits)


@pytest.mark.parametrize("repetition", range(5))
async def test_a_burst_of_200_against_ten_a_minute_lets_exactly_ten_pass(
    tmp_path: Path, repetition: int
) -> None:
    limited(tmp_path, requests_per_minute=10)
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        answers = await asyncio.gather(*(running.chat(stream=bool(i % 2)) for i in range(200)))
        statuses = [answer.status for answer in answers]
        assert (statuses.count(200), statuses.count(429)) == (10, 190)
        assert len(engine.calls) == 10
        refused = next(answer for answer in answers if answer.status == 429)
        assert 1 <= int(refused.headers["Retry-After"]) <= 61
        assert refused.headers["x-ratelimit-limit-requests"] == "10"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert (await refused.json())["error"]["code"] == "rate_limit_exceeded"
        assert running.gateway.tenancy.limiter.keys["team"].in_flight == 0
        labels = 'key="team",reason="key_requests"'
        assert (await running.metrics())[f"llm_gateway_rate_limited_total{{{labels}}}"] == 190


async def test_metrics_tell_how_near_a_key_is_to_its_limits(tmp_path: Path) -> None:
    limited(tmp_path, requests_per_minute=10, tokens_per_day=1_000_000)
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        for _ in range(9):
            await running.chat()
        metrics = await running.metrics()
    used = 'llm_gateway_key_limit_used_ratio{key="team",limit="%s"}'
    assert metrics[used % "requests"] == 0.9
    assert 0 < metrics[used % "day"] < 0.01
    assert used % "month" not in metrics


async def test_streamed_tokens_are_held_to_the_limit_within_one_requests_output(tmp_path: Path) -> None:
    limited(tmp_path, tokens_per_minute=500)

    async def fifty(call: Call) -> None:
        await call.send(STREAM_HEAD)
        for count in range(51):
            await call.send_event(delta("x", usage=usage(10, count)))
        await call.send(event("[DONE]") + END)

    async with FakeEngine(fifty) as engine, gateway(tmp_path, engine.url) as running:
        passed = 0
        for _ in range(6):
            answers = await asyncio.gather(*(running.chat(stream=True, max_tokens=50) for _ in range(20)))
            passed += sum(answer.status == 200 for answer in answers)
        assert 500 - 60 <= passed * 60 <= 500 + 50
        window = running.gateway.tenancy.limiter.keys["team"].tokens
        assert window.total == passed * 60


async def test_headers_tell_where_a_key_stands(tmp_path: Path) -> None:
    limited(tmp_path, requests_per_minute=5, tokens_per_minute=1000)
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        await running.chat()
        began = monotonic()
        answer = await running.chat()
        told = {k.lower(): v for k, v in answer.headers.items() if k.lower().startswith("x-ratelimit")}
        assert told["x-ratelimit-limit-requests"] == "5"
        assert told["x-ratelimit-remaining-requests"] == "3"
        assert told["x-ratelimit-limit-tokens"] == "1000"
        # The first has settled at its nine tokens, the second has its reservation still.
        assert 1000 - 9 - 300 <= int(told["x-ratelimit-remaining-tokens"]) < 1000 - 9
        reset = int(told["x-ratelimit-reset-requests"].removesuffix("s"))
        assert 60 - (monotonic() - began) <= reset <= 61


async def test_a_spent_budget_says_that_trying_again_does_not_help(tmp_path: Path) -> None:
    limited(tmp_path, tokens_per_day=20)
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        answers = [await running.chat(max_tokens=2) for _ in range(5)]
        last = answers[-1]
        assert (last.status, last.headers["x-should-retry"]) == (429, "false")
        assert (await last.json())["error"]["code"] == "budget_exceeded"
        assert 0 < int(last.headers["Retry-After"]) <= 86400


async def test_a_refusal_names_the_answer_with_which_the_request_passes(tmp_path: Path) -> None:
    limited(tmp_path, tokens_per_day=200)
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        assert (await running.chat(max_tokens=10)).status == 200
        refused = await running.chat(max_tokens=300)
        assert refused.status == 429
        told = re.search(r"at most (\d+) tokens", (await refused.json())["error"]["message"])
        assert told is not None
        assert (await running.chat(max_tokens=int(told[1]) + 1)).status == 429
        assert (await running.chat(max_tokens=int(told[1]))).status == 200


async def test_what_never_came_to_an_engine_costs_nothing(tmp_path: Path) -> None:
    limited(tmp_path, requests_per_minute=3, tokens_per_minute=1000)
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running:
        running.gateway.pool.engines[0].drained = True
        assert [(await running.chat()).status for _ in range(5)] == [503] * 5
        running.gateway.pool.engines[0].drained = False
        assert [(await running.chat()).status for _ in range(4)] == [200, 200, 200, 429]


async def test_addresses_behind_a_trusted_proxy_have_limits_of_their_own(tmp_path: Path) -> None:
    proxy = {"trusted_proxies": ["127.0.0.0/8"], "limits": {"requests_per_minute": 2}}
    async with (
        FakeEngine(answer_chat) as engine,
        gateway(tmp_path, engine.url, addresses=proxy) as running,
    ):

        async def ask(client: str) -> int:
            body = {"model": "m", "messages": []}
            return (await running.ask(CHAT, body, X_Forwarded_For=client)).status

        assert [await ask("203.0.113.1") for _ in range(3)] == [200, 200, 429]
        assert await ask("203.0.113.2") == 200
        assert [await ask(f"2001:db8::{i}") for i in range(3)] == [200, 200, 429]


async def test_repeated_wrong_keys_are_slowed(tmp_path: Path) -> None:
    async with (
        FakeEngine(answer_chat) as engine,
        gateway(tmp_path, engine.url, addresses={"failures_per_minute": 3}) as running,
    ):
        statuses = [(await running.ask(CHAT, {"model": "m"}, key="wrong")).status for _ in range(5)]
        assert statuses == [401, 401, 401, 429, 429]


class Chaos:
    """An engine and clients that end requests in every way there is."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - which request ends how
        self.running: Running | None = None
        self.highest = 0

    async def engine(self, call: Call) -> None:
        assert self.running is not None
        self.highest = max(
            self.highest,
            self.running.gateway.tenancy.limiter.keys["team"].in_flight,
            self.running.gateway.pool.engines[0].in_flight,
        )
        choice = self.random.random()
        if choice < 0.05:
            call.reset()
            return
        if choice < 0.10:
            await call.send_json({"error": {"message": "no"}}, self.random.choice([400, 500, 503]))
            return
        if choice < 0.13:
            # Longer than the gateway waits for a first byte.
            await call.gone()
            return
        if not call.json.get("stream"):
            await answer_chat(call)
            return
        await call.send(STREAM_HEAD)
        for count in range(self.random.randint(1, 6)):
            await call.send_event(delta("x", usage=usage(7, count)))
            await asyncio.sleep(0)
        if choice < 0.2:
            call.reset()
            return
        await call.send(event("[DONE]") + END)

    async def client(self, port: int, requests: "list[int]") -> None:
        """Sends requests until none are left, and leaves some of them early."""
        while requests:
            requests.pop()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps({"model": "m", "messages": [], "stream": self.random.random() < 0.7}).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            leaves = self.random.random()
            with contextlib.suppress(ConnectionError, TimeoutError):
                if leaves < 0.2:
                    await asyncio.sleep(self.random.random() / 100)
                elif leaves < 0.4:
                    await reader.read(1)
                else:
                    await reader.read()
            if leaves < 0.3:
                writer.transport.abort()
            else:
                writer.close()


ENDINGS = (
    "ok",
    "client_gone",
    "rate_limit_exceeded",
    "queue_timeout",
    "invalid_request",
    "engine_busy",
    "engine_error",
    "engine_lost",
    "engine_timeout",
    "total_timeout",
)


async def rarest_ending(running: Running) -> float:
    """How often the ending has been met that was met least."""
    metrics = await running.metrics()
    labels = 'class="default",endpoint="chat",model="m",outcome="%s"'
    return min(metrics.get(f"llm_gateway_requests_total{{{labels % ending}}}", 0) for ending in ENDINGS)


async def test_nothing_leaks_over_10_000_randomly_ended_requests(tmp_path: Path) -> None:
    limited(tmp_path, concurrency=16, requests_per_minute=1_000_000, tokens_per_minute=100_000_000)
    chaos = Chaos(seed=7)
    patience: dict[str, Any] = {"first_byte": {"default": 0.1}, "total": 2.0, "between_chunks": 1.0}
    async with (
        FakeEngine(chaos.engine) as engine,
        gateway(
            tmp_path,
            engine.url,
            timeouts=patience,
            # Fewer places than the key has: some wait, and some leave while they do.
            engines=[{"name": "e0", "url": engine.url, "models": ["m"], "max_in_flight": 12}],
            queue={"deadlines": {"default": 0.05}},
        ) as running,
    ):
        chaos.running = running

        async def send(count: int) -> None:
            requests = list(range(count))
            await asyncio.gather(*(chaos.client(running.port, requests) for _ in range(24)))

        await send(10_000)
        # How many endings there are of each kind depends on the machine: a slow one turns more away.
        while len(engine.calls) <= 4_000 or await rarest_ending(running) < 10:
            await send(500)
        # The last ones end by their own timeouts.
        await until(lambda: not running.gateway.tenancy.limiter.open and idle(running))
        assert chaos.highest == 16
        account = running.gateway.tenancy.limiter.keys["team"]
        assert account.in_flight == 0
        assert running.gateway.pool.engines[0].in_flight == 0
        in_flight = {k: v for k, v in (await running.metrics()).items() if "in_flight" in k}
        assert in_flight
        assert set(in_flight.values()) == {0}
