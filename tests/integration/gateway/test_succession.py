"""Counters over a reload: scrapes see every request once, and no counter ever goes back."""

# ruff: noqa: ASYNC110 - other processes are watched, which set no event

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import pytest
import yaml

from daemons.gateway.succession import Succession
from tests.support.fake_engine import (
    FakeEngine,
    HeldStream,
    answer_chat,
)
from tests.support.gateway import BEARER, gateway
from tests.support.gateway_processes import running

NAME = 'llm_gateway_requests_total{class="default",endpoint="chat",model="m",outcome="ok"}'
IN_FLIGHT = 'llm_gateway_requests_in_flight{class="default",endpoint="chat",model="m"}'


async def test_counters_outlive_the_workers(tmp_path: Path) -> None:
    held = HeldStream()
    async with (
        FakeEngine(held) as engine,
        running(tmp_path, engine) as master,
        aiohttp.ClientSession(headers=BEARER) as session,
    ):
        settings = yaml.safe_load((tmp_path / "gateway.yaml").read_text())
        seen: list[float] = []

        async def scrape() -> dict[str, float]:
            url = f"http://127.0.0.1:{settings['metrics']['port']}/metrics"
            async with session.get(url) as response:
                lines = (line.rpartition(" ") for line in (await response.text()).splitlines())
                samples = {name: float(value) for name, _, value in lines if name and name[0] != "#"}
            seen.append(samples.get(NAME, 0))
            return samples

        async def ask(times: int) -> None:
            for _ in range(times):
                async with session.post(f"{master.url}/v1/chat/completions", json={"model": "m"}) as response:
                    assert response.status == 200

        async def reload() -> set[int]:
            before = await master.reload()
            for _ in range(40):
                await scrape()
                await ask(1)
            return before

        await ask(5)
        stream = {"model": "m", "stream": True}
        async with session.post(f"{master.url}/v1/chat/completions", json=stream) as response:
            await response.content.readuntil(b"\n\n")
            # Twice, so that the first worker ends after two others have taken over.
            before = await reload() | await reload()
            # What a draining worker counts is told within a second.
            async with asyncio.timeout(60):
                while (await scrape())[NAME] < 85:
                    await asyncio.sleep(0.05)
                assert seen[-1] == 85
                while (await scrape())[IN_FLIGHT] != 1:
                    await asyncio.sleep(0.05)
            held.go_on.set()
            await response.read()
        async with asyncio.timeout(120):
            while (await scrape())[IN_FLIGHT] or before & master.workers():
                await asyncio.sleep(0.05)
        assert (await scrape())[NAME] == 86
        assert seen == sorted(seen)


async def test_workers_that_had_the_same_process_id_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is said of the requests is lost where a machine stands still for longer than this.
    monkeypatch.setattr("daemons.gateway.succession._PATIENCE", 60.0)
    place = tmp_path / "succession"
    async with FakeEngine(answer_chat) as engine, contextlib.AsyncExitStack() as stack:
        before = None
        for _ in range(3):
            succession = Succession(place, predecessor=before is not None)
            # All in this process, as if its id had come again.
            serving = await stack.enter_async_context(
                gateway(tmp_path, engine.url, succession=succession, timeouts={"drain": 5})
            )
            if before is not None:
                await before.session.close()
                await before.gateway.stop()
            await serving.chat()
            before = serving
        assert before is not None
        assert (await before.metrics())[NAME] == 3
