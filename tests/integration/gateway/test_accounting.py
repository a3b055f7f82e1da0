"""The ledger behind a gateway that serves, and behind one that is killed."""

# ruff: noqa: ASYNC110 - other processes are watched, which set no event

import asyncio
import contextlib
import json
import os
import resource
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp

from daemons.gateway.tenants.ledger import book
from daemons.gateway.tenants.ledger.book import Closed
from tests.support.fake_engine import (
    STREAM_HEAD,
    Call,
    FakeEngine,
    HeldStream,
    answer_chat,
    delta,
    usage,
)
from tests.support.gateway import BEARER, KEY, gateway, write_key
from tests.support.gateway_processes import Master, running

CHAT = "/v1/chat/completions"


def read(path: Path, table: str = "requests") -> list[Any]:
    try:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608
    except sqlite3.Error:
        return []


async def rows(folder: Path, count: int, table: str = "requests") -> list[Closed]:
    """The rows, once there are so many."""
    found: list[Any] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            found = await asyncio.to_thread(read, folder / "ledger.db", table)
            await asyncio.sleep(0.02)
    return [Closed._make(row) for row in found] if table == "requests" else found


async def stall_after_two(call: Call) -> None:
    """A stream of two tokens that goes no further."""
    await call.send(STREAM_HEAD)
    for count in range(3):
        await call.send_event(delta("x", usage=usage(7, count)))
    await call.gone()


async def test_every_ending_has_its_row(tmp_path: Path) -> None:
    reset = asyncio.Event()

    async def script(call: Call) -> None:
        text = str(call.json["messages"])
        if "Hi" in text:
            await answer_chat(call)
        elif "die" in text:
            await call.send(STREAM_HEAD)
            await call.send_event(delta("x", usage=usage(7, 1)))
            await reset.wait()
            call.reset()
        else:
            await stall_after_two(call)

    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "stall"}]}
    async with FakeEngine(script) as engine:
        async with gateway(tmp_path, engine.url, timeouts={"between_chunks": 2}) as running_:
            await running_.ask(CHAT, body)
        # Where the machine stands still for two seconds, that one would take the others for stalled, too.
        async with gateway(tmp_path, engine.url) as running_:
            await running_.chat()
            await running_.chat(stream=True)
            assert (await running_.chat(n=1000)).status == 400
            async with running_.session.post(running_.url + CHAT, json=body, headers=BEARER) as response:
                await response.content.readuntil(b"\n\n")
                await response.content.readuntil(b"\n\n")
                await response.content.readuntil(b"\n\n")
            dying = {**body, "messages": [{"role": "user", "content": "die"}]}
            async with running_.session.post(running_.url + CHAT, json=dying, headers=BEARER) as response:
                await response.content.readuntil(b"\n\n")
                reset.set()
                await response.read()
            found = await rows(tmp_path, 5)
    assert sorted((row.outcome, row.prompt, row.completion) for row in found) == [
        ("client_gone", 7, 2),
        ("engine_lost", 7, 1),
        ("engine_stalled", 7, 2),
        ("ok", 7, 2),
        ("ok", 7, 2),
    ]
    assert {(row.key, row.model, row.engine, row.estimated) for row in found} == {("team", "m", "e0", 0)}


async def test_a_key_sees_its_own_usage_only(tmp_path: Path) -> None:
    write_key(tmp_path / "keys.d", "team", limits={"tokens_per_month": 1000})
    write_key(tmp_path / "keys.d", "other", secret="other-key")
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running_:
        await running_.chat(max_tokens=2)
        await running_.chat(max_tokens=2)
        await rows(tmp_path, 2)

        async def used(key: str, query: str = "") -> Any:
            headers = {"X-API-Key": key}
            async with running_.session.get(f"{running_.url}/v1/usage{query}", headers=headers) as response:
                return response.status, await response.json()

        status, mine = await used(KEY)
        assert status == 200
        assert [
            (d["model"], d["requests"], d["prompt_tokens"], d["completion_tokens"]) for d in mine["data"]
        ] == [("m", 2, 14, 4)]
        assert mine["limits"] == {"tokens_per_month": 1000}
        assert mine["remaining"] == {"tokens_per_month": 1000 - 14 - 4}
        assert (await used("other-key"))[1]["data"] == []
        assert (await used(KEY, "?from=2020-01-01&to=2020-12-31"))[1]["data"] == []
        assert (await used(KEY, "?from=yesterday"))[0] == 400
        assert (await used("wrong"))[0] == 401


async def test_a_key_that_asks_for_its_usage_without_end_is_told_to_wait(tmp_path: Path) -> None:
    write_key(tmp_path / "keys.d", "team")
    write_key(tmp_path / "keys.d", "other", secret="other-key")
    async with FakeEngine(answer_chat) as engine, gateway(tmp_path, engine.url) as running_:

        async def ask_usage(_: int = 0, key: str = KEY) -> aiohttp.ClientResponse:
            return await running_.session.get(f"{running_.url}/v1/usage", headers={"X-API-Key": key})

        await running_.chat()
        await rows(tmp_path, 1)
        answers = await asyncio.gather(*map(ask_usage, range(200)))
        statuses = [answer.status for answer in answers]
        assert (statuses.count(200), statuses.count(429)) == (60, 140)
        assert 1 <= int((await ask_usage()).headers["Retry-After"]) <= 61
        assert (await ask_usage(key="other-key")).status == 200
        assert (await running_.chat()).status == 200


async def test_usage_without_a_ledger_is_refused_and_requests_go_on(tmp_path: Path) -> None:
    async with (
        FakeEngine(answer_chat) as engine,
        gateway(tmp_path, engine.url, ledger="nowhere/ledger.db") as running_,
    ):
        assert (await running_.chat()).status == 200
        async with running_.session.get(f"{running_.url}/v1/usage", headers=BEARER) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "30")
        async with asyncio.timeout(60):
            while (await running_.metrics())["llm_gateway_ledger_up"]:
                await asyncio.sleep(0.05)
            while (await running_.metrics())["llm_gateway_ledger_pending_rows"] != 1:
                await asyncio.sleep(0.05)


async def ask(session: aiohttp.ClientSession, master: Master, **body: object) -> int:
    async with session.post(
        f"{master.url}{CHAT}", json={"model": "m", "messages": [], **body}, headers=BEARER
    ) as response:
        await response.read()
        return response.status


async def test_nothing_is_lost_on_sigterm(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, running(tmp_path, engine) as master:
        async with aiohttp.ClientSession() as session:
            statuses = [await ask(session, master, stream=bool(i % 2)) for i in range(50)]
        master.process.terminate()
        await master.process.wait()
        assert statuses == [200] * 50
    found = await rows(tmp_path, 50)
    assert len(found) == 50
    assert sum(row.completion for row in found) == 100


async def test_a_kill_loses_at_most_the_last_moment_and_shows_what_was_open(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await (stall_after_two if call.json.get("stream") else answer_chat)(call)

    async with (
        FakeEngine(script) as engine,
        running(tmp_path, engine) as master,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(20):
            await ask(session, master)
        stream = asyncio.create_task(ask(session, master, stream=True))
        await rows(tmp_path, 20)
        await rows(tmp_path, 1, "opened")
        (worker,) = master.workers()
        os.kill(worker, signal.SIGKILL)
        with contextlib.suppress(aiohttp.ClientError):
            await stream
        found = await rows(tmp_path, 21)
    assert [row.outcome for row in found] == ["ok"] * 20 + [book.LOST]
    assert read(tmp_path / "ledger.db", "opened") == []


async def test_a_full_disk_delays_accounting_and_fails_no_request(tmp_path: Path) -> None:
    async with (
        FakeEngine(answer_chat) as engine,
        running(tmp_path, engine) as master,
        aiohttp.ClientSession() as session,
    ):
        await ask(session, master)
        await rows(tmp_path, 1)
        (worker,) = master.workers()
        _, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
        # No file can grow beyond what this one has already: as on a full disk.
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (4096, hard))
        assert [await ask(session, master) for _ in range(20)] == [200] * 20
        async with asyncio.timeout(60):
            while await metric(session, master, "llm_gateway_ledger_up"):
                await asyncio.sleep(0.05)
            while await metric(session, master, "llm_gateway_ledger_pending_rows") != 20:
                await asyncio.sleep(0.05)
        assert await ask(session, master) == 200
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (hard, hard))
        found = await rows(tmp_path, 22)
        assert [row.completion for row in found] == [2] * 22
        async with asyncio.timeout(30):
            while not await metric(session, master, "llm_gateway_ledger_up"):
                await asyncio.sleep(0.05)


async def metric(session: aiohttp.ClientSession, master: Master, name: str) -> float:
    async with session.get(f"{master.metrics_url}/metrics") as response:
        page = await response.text()
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} "))


async def test_two_workers_write_one_ledger_over_a_reload(tmp_path: Path) -> None:
    held = HeldStream()
    async with (
        FakeEngine(held) as engine,
        running(tmp_path, engine) as master,
        aiohttp.ClientSession() as session,
    ):
        stream = asyncio.create_task(ask(session, master, stream=True))
        await rows(tmp_path, 1, "opened")
        before = await master.reload()
        async with asyncio.timeout(60):
            while await ask(session, master) != 200:
                await asyncio.sleep(0.05)
        held.go_on.set()
        assert await stream == 200
        await master.without(before)
        found = await rows(tmp_path, 2)
        assert {row.outcome for row in found} == {"ok"}
        assert sum(row.completion for row in found if row.stream) == 1


async def test_a_burst_over_a_reload_lets_exactly_the_limit_pass(tmp_path: Path) -> None:
    write_key(tmp_path / "keys.d", "team", limits={"requests_per_minute": 10})
    async with (
        FakeEngine(answer_chat) as engine,
        running(tmp_path, engine, keep_key=True) as master,
        aiohttp.ClientSession() as lasting,
    ):
        seen = [await ask(lasting, master) for _ in range(3)]
        before = await master.reload()
        async with asyncio.timeout(120):
            # On connections that the old worker holds, and on new ones, until the old one is gone.
            while before & master.workers():
                async with aiohttp.ClientSession() as fresh:
                    seen += await asyncio.gather(*(ask(s, master) for s in (lasting, fresh) * 2))
                await asyncio.sleep(0.05)
        seen += [await ask(lasting, master) for _ in range(20)]
    assert seen.count(200) == 10
    assert set(seen) == {200, 429}


def tokens_kept(path: Path) -> int:
    """What the key has used of its days, as the file says that limits are read from."""
    if not path.exists():
        return 0
    days: dict[str, int] = json.loads(path.read_text())["keys"]["team"]["days"]
    return sum(days.values())


async def test_limits_survive_a_kill_and_a_restart(tmp_path: Path) -> None:
    write_key(tmp_path / "keys.d", "team", limits={"tokens_per_day": 30})
    async with (
        FakeEngine(answer_chat) as engine,
        running(tmp_path, engine, keep_key=True) as master,
        aiohttp.ClientSession() as session,
    ):
        assert [await ask(session, master, max_tokens=2) for _ in range(5)] == [200, 200, 429, 429, 429]
        # The file may have been written between the two that passed: nine tokens each.
        async with asyncio.timeout(60):
            while await asyncio.to_thread(tokens_kept, tmp_path / "limits.json") != 18:
                await asyncio.sleep(0.05)
        (worker,) = master.workers()
        os.kill(worker, signal.SIGKILL)
        async with asyncio.timeout(60):
            while worker in master.workers() or not master.workers():
                await asyncio.sleep(0.02)
        assert await ask(session, master, max_tokens=2) == 429
    async with (
        FakeEngine(answer_chat) as engine,
        running(tmp_path, engine, keep_key=True) as master,
        aiohttp.ClientSession() as session,
    ):
        assert await ask(session, master, max_tokens=2) == 429
