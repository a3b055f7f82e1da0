"""``llmctl top``: rates, joins, silence, the terminal."""

import argparse
import asyncio
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer
from rich.console import Console

from daemons.llmctl.top import add_parser, sources
from daemons.llmctl.top.readings import read
from daemons.llmctl.top.sources import Addresses, Pages, configured, fetch
from daemons.llmctl.top.view import screen
from daemons.runtime.errors import Fatal

GPU = 'gpu="0",uuid="GPU-a"'
EXPORTER = f"""
gpu_exporter_nvml_state{{state="ok"}} 1
gpu_up{{{GPU}}} 1
gpu_up{{gpu="1",uuid="GPU-b"}} 0
gpu_fault{{gpu="1",uuid="GPU-b",reason="lost"}} 1
gpu_info{{{GPU},name="NVIDIA RTX A6000"}} 1
gpu_utilization_ratio{{{GPU}}} 0.97
gpu_memory_used_bytes{{{GPU}}} 46170898432
gpu_memory_total_bytes{{{GPU}}} 51527024640
gpu_clock_event_active{{{GPU},reason="sw_power_cap"}} 1
gpu_unit_processes{{{GPU},unit="llm-engine@llama-8b-gpu0.service"}} 1
"""
ENGINE = """
llm_engine_state{{state="ready"}} 1
vllm:num_requests_running{{engine="0"}} 12
vllm:num_requests_waiting{{engine="0"}} 3
vllm:kv_cache_usage_perc{{engine="0"}} 0.5
vllm:generation_tokens_total{{engine="0"}} {tokens}
"""
GATEWAY = """
llm_gateway_queue_depth{{model="m",class="default"}} 4
llm_gateway_tokens_total{{key="team-a",model="m",kind="completion"}} {tokens}
llm_gateway_tokens_total{{key="idle",model="m",kind="completion"}} 5
llm_gateway_key_in_flight{{key="long"}} 2
llm_gateway_key_in_flight{{key="idle"}} 0
"""


def pages(at: float, tokens: int) -> Pages:
    engines = {"llama-8b-gpu0": ENGINE.format(tokens=tokens), "dead": None}
    return Pages(at, EXPORTER, GATEWAY.format(tokens=tokens), engines)


def test_rates_and_joins() -> None:
    reading = read(pages(12.0, 700), pages(10.0, 500))
    engine, dead = reading.engines
    assert (engine.tokens_per_second, engine.running, engine.waiting, engine.kv_used) == (100, 12, 3, 0.5)
    assert (engine.state, engine.gpus) == ("ready", ("0",))
    assert (dead.state, dead.running) == ("silent", None)
    keys = [(key.name, key.in_flight, key.tokens_per_second) for key in reading.keys]
    assert keys == [("long", 2, 0), ("team-a", 0, 100)], "a long stream is seen before its tokens are counted"
    assert reading.queue == 4
    assert reading.silent == ("dead",)
    assert [(gpu.up, gpu.fault) for gpu in reading.gpus] == [(True, ""), (False, "lost")]


def test_rates_of_keys_are_taken_over_longer() -> None:
    reading = read(pages(20.0, 700), pages(19.0, 700), pages(10.0, 500))
    assert reading.engines[0].tokens_per_second == 0
    assert [key.tokens_per_second for key in reading.keys if key.name == "team-a"] == [20]


@pytest.mark.parametrize("named", ["1", "gpu-B", "0000:4B:00.0", "00000000:4b:00.0"])
def test_an_engine_that_is_not_on_its_gpu_yet_is_shown_where_its_settings_put_it(named: str) -> None:
    text = EXPORTER + 'gpu_info{gpu="1",uuid="GPU-b",pci_bus_id="00000000:4b:00.0"} 1\n'
    now = Pages(1.0, text, None, {"llama-8b-gpu0": None, "dead": None})
    placed = {"dead": (named,), "llama-8b-gpu0": (named,)}
    assert [engine.gpus for engine in read(now, None, placed=placed).engines] == [("0",), ("1",)]


def test_a_restarted_engine_has_no_rate() -> None:
    assert read(pages(12.0, 10), pages(10.0, 500)).engines[0].tokens_per_second is None


def test_keys_have_no_rate_after_a_silence_of_the_gateway() -> None:
    """All that was ever counted is not what came since."""
    silent = Pages(10.0, EXPORTER, None, {})
    reading = read(pages(12.0, 700), pages(11.0, 690), silent)
    assert {key.tokens_per_second for key in reading.keys} == {None}


def asked_at(server: BaseTestServer) -> Addresses:
    """Of an exporter and a gateway at ``/silent``, and an engine at ``/engine``."""
    silent, engine = (str(server.make_url(path)) for path in ("/silent", "/engine"))
    return Addresses(silent, silent, {"a": engine}, {})


async def test_one_silent_address_does_not_move_the_time_of_the_others() -> None:
    """Else the tokens of four seconds would be taken for those of one, once it answers again."""
    loop = asyncio.get_running_loop()
    asked: list[float] = []
    answered = asyncio.Event()

    async def engine(_: web.Request) -> web.Response:
        asked.append(loop.time())
        answered.set()
        return web.Response(text="x 1\n")

    async def silent(request: web.Request) -> web.Response:
        await answered.wait()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    app = web.Application()
    app.router.add_get("/engine", engine)
    app.router.add_get("/silent", silent)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        pages = await fetch(session, asked_at(server))
    assert (pages.exporter, pages.engines) == (None, {"a": "x 1\n"})
    assert pages.at <= asked[0]


async def test_an_address_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/{where}", never)
    monkeypatch.setattr(sources, "_TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        pages = await fetch(session, asked_at(server))
    assert (pages.exporter, pages.gateway, pages.engines) == (None, None, {"a": None})


def test_eighty_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(screen(read(pages(12.0, 700), pages(10.0, 500)), live=True))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for word in (
        "RTX A6000",
        "97%",
        "lost",
        "llama-8b-gpu0",
        "team-a",
        "no answer: dead",
        "waiting at the gateway: 4 requests",
        "q quits",
    ):
        assert word in text


def test_nothing_answers() -> None:
    reading = read(Pages(1.0, None, None, {}), None)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(screen(reading))
    assert "the exporter does not answer" in console.export_text()


def test_addresses_come_from_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "a.yaml").write_text("metrics: {host: 127.0.0.1, port: 9110}\ngpus: [0, GPU-b]\n")
    (tmp_path / "gateway.yaml").write_text('metrics: {host: "::", port: 9102}\n')
    found = configured(tmp_path)
    assert found.engines == {"a": "http://127.0.0.1:9110/metrics"}
    assert found.gpus == {"a": ("0", "GPU-b")}
    assert found.gateway == "http://[::1]:9102/metrics"
    assert found.exporter == "http://127.0.0.1:9101/metrics"
    (tmp_path / "gateway.yaml").write_text("metrics: [\n")
    with pytest.raises(Fatal, match=r"gateway\.yaml"):
        configured(tmp_path)


def _parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["top", *argv])


def test_once_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = "http://127.0.0.1:1/metrics"
    args = _parsed(
        "--once", "--json", "--config-dir", str(tmp_path), "--exporter", closed, "--gateway", closed
    )
    assert args.run(args) == 1
    assert json.loads(capsys.readouterr().out)["silent"] == ["exporter", "gateway"]


@pytest.mark.parametrize("argv", [["--json"], ["--once", "--engine", "x"]])
def test_wrong_options(tmp_path: Path, argv: list[str]) -> None:
    args = _parsed(*argv, "--config-dir", str(tmp_path))
    with pytest.raises(Fatal):
        args.run(args)


_LIVE = """
import argparse, sys
from daemons.llmctl.top import add_parser
parser = argparse.ArgumentParser()
add_parser(parser.add_subparsers())
args = parser.parse_args(["top", "--config-dir", *sys.argv[1:]])
sys.exit(args.run(args))
"""


def test_one_key_quits_the_live_view(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    closed = "http://127.0.0.1:1/"
    process = subprocess.Popen(
        [sys.executable, "-c", _LIVE, str(tmp_path), "--exporter", closed, "--gateway", closed],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=Path(__file__).parents[4],
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 60
    try:
        while b"q quits" not in shown:
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 65536)
        os.write(ours, b"q")
        while process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    os.read(ours, 65536)
                except OSError:
                    break
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
