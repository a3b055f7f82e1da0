"""The gateway as processes: reload, death of a worker, stop; on real sockets, under requests."""

# ruff: noqa: ASYNC110 - other processes are watched, which set no event

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import yaml

from tests.support.fake_engine import (
    FakeEngine,
    HeldStream,
    answer_chat,
)
from tests.support.gateway import BEARER, until
from tests.support.gateway_processes import alive, is_ready, running


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
    held = HeldStream()
    async with (
        FakeEngine(held) as engine,
        running(tmp_path, engine) as master,
        aiohttp.ClientSession() as session,
    ):
        stop, seen = asyncio.Event(), list[int]()
        asking = asyncio.create_task(_keep_asking(master.url, stop, seen))
        async with session.post(
            f"{master.url}/v1/chat/completions", json={"model": "m", "stream": True}, headers=BEARER
        ) as stream:
            await stream.content.readuntil(b"\n\n")
            before = await master.reload()
            asked = len(seen)
            await until(lambda: len(seen) >= asked + 200, 60)
            assert before < master.workers()
            held.go_on.set()
            assert (await stream.content.read()).endswith(b"data: [DONE]\n\n")
        await master.without(before)
        stop.set()
        await asking
        assert set(seen) == {200}


def _release(tmp_path: Path, name: str) -> Path:
    """A release whose command is, as pip writes it, a script that names its own interpreter."""
    interpreter = tmp_path / name / "bin/python3"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    script = interpreter.with_name("llm-gateway")
    script.write_text(
        f"#!/usr/bin/env {interpreter}\nimport sys\nfrom pathlib import Path\n"
        "from daemons.gateway.__main__ import main\n"
        f"if '--worker' in sys.argv:\n    Path({str(tmp_path / 'worker')!r}).write_text({name!r})\n"
        "sys.exit(main())\n"
    )
    script.chmod(0o755)
    return tmp_path / name


async def test_a_reload_after_an_upgrade_starts_the_new_release(tmp_path: Path) -> None:
    releases = [_release(tmp_path, "before"), _release(tmp_path, "after")]
    current = tmp_path / "current"
    current.symlink_to(releases[0])
    program = current / "bin/llm-gateway"
    async with FakeEngine(answer_chat) as engine, running(tmp_path, engine, program=program) as master:
        assert (tmp_path / "worker").read_text() == "before"
        (tmp_path / "next").symlink_to(releases[1])
        (tmp_path / "next").replace(current)
        await master.without(await master.reload())
        assert (tmp_path / "worker").read_text() == "after"


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
        await master.without({former})
        async with aiohttp.ClientSession() as session:
            assert await is_ready(session, master.url)


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
            assert await is_ready(session, master.url)
        assert master.workers() == before
        config.write_text(good)


async def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    async with FakeEngine(answer_chat) as engine, running(tmp_path, engine) as master:
        (worker,) = master.workers()
        os.kill(worker, signal.SIGKILL)
        await master.without({worker})
        async with asyncio.timeout(60), aiohttp.ClientSession(headers=BEARER) as session:
            # The connection waits in the backlog that the master holds.
            async with session.post(f"{master.url}/v1/chat/completions", json={"model": "m"}) as response:
                assert response.status in {200, 503}
            while not await is_ready(session, master.url):
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
        await until(lambda: not alive(worker), 120)


async def test_the_admin_socket_of_another_gateway_is_left_alone(tmp_path: Path) -> None:
    """It moves from worker to worker, but a second gateway by mistake does not get it."""
    async with FakeEngine(answer_chat) as engine, running(tmp_path, engine) as master:
        await master.without(await master.reload())
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
