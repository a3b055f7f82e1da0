"""The gateway as processes: reload, death of a worker, stop; on real sockets, under requests."""

# ruff: noqa: ASYNC110 - other processes are watched, which set no event

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import yaml

from daemons.runtime.sockets import Address, listen_tcp, port_of
from tests.support.fake_engine import END, STREAM_HEAD, Call, FakeEngine, answer_chat, delta, event
from tests.support.gateway import KEY, write_key

BEARER = {"Authorization": f"Bearer {KEY}"}


class Master:
    """A running ``llm-gateway``."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, metrics: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{metrics}"

    def workers(self) -> set[int]:
        """Process ids of the workers."""
        return children(self.process.pid)


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
async def running(tmp_path: Path, engine: FakeEngine, *, keep_key: bool = False) -> AsyncIterator[Master]:
    """A gateway in processes of its own, on free ports; with `keep_key` on the keys that are there."""
    probes = [listen_tcp(Address(port=0)), listen_tcp(Address(port=0))]
    port, metrics = map(port_of, probes)
    for probe in probes:
        probe.close()
    if not keep_key:
        write_key(tmp_path / "keys.d", "team")
    config = tmp_path / "gateway.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "listen": {"port": port},
                "metrics": {"port": metrics},
                "engines": [{"name": "e", "url": engine.url, "models": ["m"]}],
            }
        )
    )
    command = [sys.executable, "-m", "daemons.gateway", "--config", str(config)]
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | {"RUNTIME_DIRECTORY": str(tmp_path)}
    )
    master = Master(process, port, metrics)
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while not await _ready(session, master.url):
                await asyncio.sleep(0.05)
        yield master
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(120):
                await process.wait()


async def _ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def _keep_asking(url: str, stop: asyncio.Event, seen: list[int]) -> None:
    """Requests without a pause, every second one on a connection of its own."""
    async with aiohttp.ClientSession(headers=BEARER) as lasting:
        while not stop.is_set():
            async with aiohttp.ClientSession(headers=BEARER) as fresh:
                for session in (lasting, fresh):
                    async with session.post(f"{url}/v1/chat/completions", json={"model": "m"}) as response:
                        await response.read()
                        seen.append(response.status)


async def test_a_reload_refuses_nobody_and_breaks_no_stream(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        if not call.json.get("stream"):
            await answer_chat(call)
            return
        await call.send(STREAM_HEAD)
        await call.send_event(delta("a"))
        await go_on.wait()
        await call.send(event("[DONE]") + END)

    async with (
        FakeEngine(script) as engine,
        running(tmp_path, engine) as master,
        aiohttp.ClientSession() as session,
    ):
        before = master.workers()
        stop, seen = asyncio.Event(), list[int]()
        asking = asyncio.create_task(_keep_asking(master.url, stop, seen))
        async with session.post(
            f"{master.url}/v1/chat/completions", json={"model": "m", "stream": True}, headers=BEARER
        ) as stream:
            await stream.content.readuntil(b"\n\n")
            master.process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(60):
                while not master.workers() - before:
                    await asyncio.sleep(0.02)
                asked = len(seen)
                while len(seen) < asked + 200:
                    await asyncio.sleep(0.02)
            assert before < master.workers()
            go_on.set()
            assert (await stream.content.read()).endswith(b"data: [DONE]\n\n")
        async with asyncio.timeout(120):
            while before & master.workers():
                await asyncio.sleep(0.02)
        stop.set()
        await asking
        assert set(seen) == {200}


async def _reload_command(tmp_path: Path, pid: int) -> tuple[int | None, str]:
    """What ``ExecReload=`` of the unit runs; its exit status and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemons.gateway", "--reload"),
        env=os.environ | {"RUNTIME_DIRECTORY": str(tmp_path), "MAINPID": str(pid)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode, said.decode()


async def test_the_reload_command_returns_once_the_new_worker_serves(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, running(tmp_path, engine) as master:
        (former,) = master.workers()
        assert (await _reload_command(tmp_path, master.process.pid))[0] == 0
        assert master.workers() - {former}
        async with asyncio.timeout(120):
            while former in master.workers():
                await asyncio.sleep(0.02)
        async with aiohttp.ClientSession() as session:
            assert await _ready(session, master.url)


async def test_the_reload_command_says_why_a_reload_is_refused(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, running(tmp_path, engine) as master:
        before = master.workers()
        with (tmp_path / "gateway.yaml").open("a") as config:
            config.write("nonsense: 1\n")
        status, said = await _reload_command(tmp_path, master.process.pid)
        assert (status, "nonsense" in said) == (78, True), said
        assert master.workers() == before


async def test_the_reload_command_without_a_gateway_is_one_line(tmp_path: Path) -> None:
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    status, said = await _reload_command(tmp_path, gone.pid)
    assert (status, said) == (1, f"no gateway runs as process {gone.pid}\n")


async def test_a_broken_configuration_is_not_taken_over(tmp_path: Path) -> None:
    async with (
        FakeEngine(answer_chat) as engine,
        running(tmp_path, engine) as master,
        aiohttp.ClientSession() as session,
    ):
        before = master.workers()
        config = tmp_path / "gateway.yaml"
        good = config.read_text()
        config.write_text(good + "nonsense: 1\n")
        master.process.send_signal(signal.SIGHUP)
        for _ in range(5):
            assert await _ready(session, master.url)
        assert master.workers() == before
        config.write_text(good)


async def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, running(tmp_path, engine) as master:
        (worker,) = master.workers()
        os.kill(worker, signal.SIGKILL)
        async with asyncio.timeout(60), aiohttp.ClientSession(headers=BEARER) as session:
            while worker in master.workers():
                await asyncio.sleep(0.02)
            # The connection waits in the backlog that the master holds.
            async with session.post(f"{master.url}/v1/chat/completions", json={"model": "m"}) as response:
                assert response.status in {200, 503}
            while not await _ready(session, master.url):
                await asyncio.sleep(0.05)


async def test_no_process_is_left(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, running(tmp_path, engine) as master:
        workers = master.workers()
        master.process.terminate()
        async with asyncio.timeout(120):
            assert await master.process.wait() == 0
        assert not [pid for pid in workers if alive(pid)]


async def test_a_worker_does_not_outlive_a_killed_master(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, running(tmp_path, engine) as master:
        (worker,) = master.workers()
        master.process.kill()
        async with asyncio.timeout(120):
            await master.process.wait()
            while alive(worker):
                await asyncio.sleep(0.02)


async def test_the_admin_socket_of_another_gateway_is_left_alone(tmp_path: Path) -> None:
    """It moves from worker to worker, but a second gateway by mistake does not get it."""
    async with FakeEngine(answer_chat) as engine, running(tmp_path, engine) as master:
        before = master.workers()
        master.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            while before & master.workers():
                await asyncio.sleep(0.02)
        second = tmp_path / "second"
        second.mkdir()
        text = yaml.safe_load((tmp_path / "gateway.yaml").read_text())
        text |= {"listen": {"port": 0}, "metrics": {"port": 0}, "keys": str(tmp_path / "keys.d")}
        (second / "gateway.yaml").write_text(yaml.safe_dump(text))
        command = [sys.executable, "-m", "daemons.gateway", "--config", str(second / "gateway.yaml")]
        other = await asyncio.create_subprocess_exec(
            *command, stderr=asyncio.subprocess.PIPE, env=os.environ | {"RUNTIME_DIRECTORY": str(tmp_path)}
        )
        _, told = await asyncio.wait_for(other.communicate(), 60)
        assert other.returncode != 0
        assert b"already in use" in told
        connector = aiohttp.UnixConnector(str(tmp_path / "admin.sock"))
        async with (
            aiohttp.ClientSession("http://gateway", connector=connector) as session,
            session.get("/state") as response,
        ):
            assert (await response.json())["pid"] in master.workers()
