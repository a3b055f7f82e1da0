"""The gateway as processes: a master and its workers, on real sockets."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import yaml

from tests.support.fake_engine import FakeEngine
from tests.support.gateway import PATIENT, until, write_key
from tests.support.ports import free_port


class Master:
    """A running ``llm-gateway``."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, metrics: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{metrics}"

    def workers(self) -> set[int]:
        """Process ids of the workers."""
        return children(self.process.pid)

    async def reload(self) -> set[int]:
        """Have a new worker made; the former ones, which go on as long as they have to."""
        before = self.workers()
        self.process.send_signal(signal.SIGHUP)
        await until(lambda: self.workers() - before, 60)
        return before

    async def without(self, workers: set[int]) -> None:
        """Wait until these have ended."""
        await until(lambda: not workers & self.workers(), 120)


def children(pid: int) -> set[int]:
    """Child processes of `pid`."""
    path = f"/proc/{pid}/task/{pid}/children"
    fd = os.open(path, os.O_RDONLY)
    try:
        return {int(child) for child in os.read(fd, 4096).split()}
    finally:
        os.close(fd)


def alive(pid: int) -> bool:
    """Whether a process of this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.asynccontextmanager
async def running(
    tmp_path: Path, engine: FakeEngine, *, keep_key: bool = False, program: Path | None = None
) -> AsyncIterator[Master]:
    """A gateway in processes of its own, on free ports; with `keep_key` on the keys that are there.

    `program` is the command to run; by default the package.
    """
    port, metrics = free_port(), free_port()
    if not keep_key:
        write_key(tmp_path / "keys.d", "team")
    config = tmp_path / "gateway.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "listen": {"port": port},
                "metrics": {"port": metrics},
                "engines": [{"name": "e", "url": engine.url, "models": ["m"]}],
                "timeouts": PATIENT,
            }
        )
    )
    command = [sys.executable, "-m", "daemons.gateway"] if program is None else [str(program)]
    process = await asyncio.create_subprocess_exec(
        *command, "--config", str(config), env=os.environ | {"RUNTIME_DIRECTORY": str(tmp_path)}
    )
    master = Master(process, port, metrics)
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while not await is_ready(session, master.url):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        yield master
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(120):
                await process.wait()


async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether the gateway at `url` would take a request."""
    try:
        async with session.get(f"{url}/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
