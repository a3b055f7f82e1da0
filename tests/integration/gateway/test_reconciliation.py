"""The ledger against the engines' own counters: the simulator's as a process, and the real vLLM's."""

import asyncio
import contextlib
import json
import random
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemons.gateway.tenants.ledger import book
from daemons.gateway.tenants.ledger.book import Closed, Point
from daemons.gateway.tenants.reconcile import Tokens, compare, read_counters
from tests.integration.simulator.conftest import Simulator, wait_for
from tests.support.gateway import KEY, Running, gateway, until, write_key

CHAT = "/v1/chat/completions"


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    # Steps that are slow beside a busy machine: the engine hears of a client that left within about one.
    flags = "--host 127.0.0.1 --port 0 --sim-startup-seconds 0 --sim-inter-token-ms 1000 --max-num-seqs 600"
    made = Simulator(*flags.split(), "--sim-prefill-rate", "200000", "--enable-prompt-tokens-details")
    try:
        yield made.until_serving()
    finally:
        made.close()


def counters(simulator: Simulator) -> Tokens:
    found = read_counters(str(simulator.ask("/metrics")[1]).encode())
    assert found is not None
    return found


async def client(port: int, work: Iterator[int], seed: int, seen: dict[str, int]) -> None:
    """Requests of every kind; a third of them is left in the midst of its stream."""
    dice = random.Random(seed)  # noqa: S311 - which request does what
    for _ in work:
        leave = dice.random() < 1 / 3
        stream = leave or dice.random() < 0.5
        body: dict[str, Any] = {"model": "m", "max_tokens": dice.randint(1, 3), "stream": stream}
        if leave:
            body |= {"max_tokens": 400, "ignore_eos": True}
        if dice.random() < 0.3:
            path, body["prompt"] = "/v1/completions", "word " * dice.randint(1, 300)
        else:
            path, body["messages"] = CHAT, [{"role": "user", "content": "hello " * dice.randint(1, 300)}]
        if stream and dice.random() < 0.3:
            body["stream_options"] = {"include_usage": True}
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        if leave:
            for _ in range(dice.randint(1, 3)):
                await reader.readuntil(b"\n\n")
            writer.transport.abort()
        else:
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200"), answer
            writer.close()
        seen["left" if leave else "whole"] += 1


async def idle(running: Running) -> None:
    await until(lambda: not running.gateway.tenancy.limiter.open, 60)


def ledger_rows(path: Path) -> list[Closed]:
    with closing(sqlite3.connect(path)) as connection:
        return [Closed._make(row) for row in connection.execute("SELECT * FROM requests")]


@pytest.mark.timeout(600)
async def test_the_ledger_equals_the_engines_counters_over_2000_requests(
    tmp_path: Path, simulator: Simulator
) -> None:
    requests = 2_000
    async with gateway(tmp_path, f"http://127.0.0.1:{simulator.port}") as running:
        before = await asyncio.to_thread(counters, simulator)
        seen, work = {"left": 0, "whole": 0}, iter(range(requests))
        await asyncio.gather(*(client(running.port, work, seed, seen) for seed in range(500)))
        await idle(running)
        await asyncio.to_thread(wait_for, lambda: not simulator.metric("vllm:num_requests_running"))
        tenancy = running.gateway.tenancy
        rows = await asyncio.wrap_future(tenancy.ledger.ask(lambda _: ledger_rows(tmp_path / "ledger.db")))
        after = await asyncio.to_thread(counters, simulator)
        engine = running.gateway.pool.engines[0]
        await tenancy.reconciliation.compare(engine)
        shown = await running.metrics()
    assert len(rows) == requests
    assert seen["left"] > requests / 4
    assert {row.outcome for row in rows} == {"ok", "client_gone"}
    left = [row for row in rows if row.outcome == "client_gone"]
    assert abs(len(left) - seen["left"]) <= 5
    counted = Tokens(after.prompt - before.prompt, after.completion - before.completion)
    prompt = sum(row.prompt for row in rows if not row.estimated)
    completion = sum(row.completion for row in rows)
    print(f"engine {counted}, ledger {prompt} {completion}, {len(left)} left in their midst")
    # Those left in their midst: what the engine made until it heard of it, a chunk of one token each.
    assert counted.prompt == prompt
    assert 0 <= counted.completion - completion <= len(left)
    missing = shown['llm_gateway_reconciliation_missing_tokens{engine="e0",kind="completion"}']
    assert missing == counted.completion - completion
    assert shown['llm_gateway_reconciliation_missing_tokens{engine="e0",kind="prompt"}'] == 0
    assert shown['llm_gateway_reconciliation_counted_tokens{engine="e0",kind="prompt"}'] == counted.prompt


async def test_what_nobody_accounts_for_is_shown(tmp_path: Path, simulator: Simulator) -> None:
    async with gateway(tmp_path, f"http://127.0.0.1:{simulator.port}") as running:
        engine, tenancy = running.gateway.pool.engines[0], running.gateway.tenancy
        await tenancy.reconciliation.compare(engine)
        body = {"model": "m", "prompt": "past the gateway", "max_tokens": 5, "ignore_eos": True}
        status, answer = await asyncio.to_thread(simulator.ask, "/v1/completions", body)
        assert status == 200
        await running.chat(max_tokens=3, ignore_eos=True)
        await tenancy.reconciliation.compare(engine)
        shown = await running.metrics()
        key = 'llm_gateway_reconciliation_missing_tokens{engine="e0",kind="%s"}'
        assert shown[key % "completion"] == 5
        assert shown[key % "prompt"] == answer["usage"]["prompt_tokens"]
        await running.chat(max_tokens=3, ignore_eos=True)
        await tenancy.reconciliation.compare(engine)
        assert (await running.metrics())[key % "completion"] == 0


async def test_a_stream_on_its_way_is_no_difference(tmp_path: Path, simulator: Simulator) -> None:
    async with gateway(tmp_path, f"http://127.0.0.1:{simulator.port}") as running:
        engine, tenancy = running.gateway.pool.engines[0], running.gateway.tenancy
        await tenancy.reconciliation.compare(engine)
        body = {"model": "m", "prompt": "x", "max_tokens": 4, "ignore_eos": True, "stream": True}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with running.session.post(
            f"{running.url}/v1/completions", json=body, headers=headers
        ) as response:
            await response.content.readuntil(b"\n\n")
            await tenancy.reconciliation.compare(engine)
            await response.read()
        await idle(running)
        await tenancy.reconciliation.compare(engine)
        shown = await running.metrics()
        # Over both comparisons: what was missing at the first is there at the second.
        missing = shown['llm_gateway_reconciliation_missing_tokens{engine="e0",kind="completion"}']
        assert abs(missing) <= 20
        point = await asyncio.wrap_future(tenancy.ledger.ask(lambda c: book.latest_point(c, "e0")))
        assert point is not None
        assert point.completion == (await asyncio.to_thread(counters, simulator)).completion


def test_another_start_of_an_engine_cannot_be_compared() -> None:
    before = Point("e", 0, 0, 1, 1000, 700, 300)
    assert compare(None, before, Tokens(0, 0)) is None
    assert compare(before, before._replace(generation=2), Tokens(0, 0)) is None
    assert compare(before, before._replace(counter=5), Tokens(0, 0)) is None
    later = before._replace(counter=1100, prompt=760, completion=340)
    assert compare(before, later, Tokens(60, 30)) == (Tokens(60, 40), Tokens(0, 10))


def test_counters_of_several_engines_are_summed() -> None:
    page = b"""# HELP vllm:prompt_tokens_total x
vllm:prompt_tokens_total{engine="0",model_name="m"} 5.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 7.0
vllm:prompt_tokens_cached_total{engine="1",model_name="m"} 9.0
vllm:generation_tokens_total 1.5e+03
"""
    assert read_counters(page) == Tokens(12, 1500)
    assert read_counters(b"nothing 1\n") is None


async def test_an_engine_without_counters_is_counted_as_a_failure(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    write_key(tmp_path / "keys.d", "team")
    async with gateway(tmp_path, url, ready_wait=0.1) as running:
        with contextlib.suppress(AssertionError):
            await running.gateway.tenancy.reconciliation.compare(running.gateway.pool.engines[0])
        shown = await running.metrics()
    assert shown['llm_gateway_reconciliation_failures_total{engine="e0"}'] == 1
