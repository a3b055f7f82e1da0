"""The question for an engine's state, and answers that come as the network likes."""

import asyncio
import tempfile
from pathlib import Path

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
