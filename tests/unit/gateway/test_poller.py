"""The question for an engine's state, and answers that come as the network likes."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from daemons.gateway.pool import poller as polling
from daemons.gateway.pool.engine import Engine
from daemons.gateway.pool.poller import Poller
from daemons.gateway.settings import EngineSettings
from daemons.runtime.control import EngineReport, EngineState

REPORT = b'{"state":"draining","reason":"the supervisor stops","generation":7}'


async def test_a_report_that_comes_in_pieces_is_read_whole() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(REPORT))
        for at in range(len(REPORT)):
            writer.write(REPORT[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    # The paths of unix sockets are short.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = Engine(EngineSettings(name="e", url=f"unix://{folder}/api.sock", models=["m"]), 2.0)
        seen: list[EngineReport] = []
        poller = Poller(engine, lambda engine, before: seen.append(engine.report))
        async with await asyncio.start_unix_server(answer, folder / "control.sock"):
            asking = asyncio.create_task(poller.run())
            try:
                async with asyncio.timeout(20):
                    await poller.asked.wait()
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
    assert (engine.report.state, engine.report.generation) == (EngineState.DRAINING, 7)


async def test_an_engine_that_knows_no_state_is_asked_for_it_again_only_once_it_was_not_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polling, "INTERVAL", 0.001)
    asked: list[str] = []
    another = asyncio.Event()
    well = True

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        another.set()
        return web.Response(status=404 if request.path == "/state" else 200 if well else 500)

    async def until(paths: list[str]) -> None:
        asked.clear()
        async with asyncio.timeout(20):
            while asked[-len(paths) :] != paths:
                await another.wait()
                another.clear()

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        engine = Engine(EngineSettings(name="e", url=str(server.make_url("/")), models=["m"]), 2.0)
        asking = asyncio.create_task(Poller(engine, lambda engine, before: None).run())
        try:
            await until(["/health"] * 5)
            well = False
            await until(["/state", "/health"] * 2)
            well = True
            await until(["/health"] * 5)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
