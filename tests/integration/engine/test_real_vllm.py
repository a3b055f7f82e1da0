"""`llm-engine` with the real vLLM on the CPU. One engine serves the tests here, the last of them ends it."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from daemons.engine.plan.cache import BLOCK_TOKENS_CPU, cache_of
from daemons.engine.plan.shape import read_shape
from daemons.llmctl.up.models import SMOLLM2, model_cache
from tests.integration.engine.conftest import PROJECT, EngineUnderTest, gone, wait_for
from tests.integration.engine.mirror import Mirror

VLLM = PROJECT / ".venv-vllm" / "bin" / "vllm"
MODEL = model_cache() / SMOLLM2
START_SECONDS = 240.0
QUIET_START_SECONDS = 45.0
LONGEST_LOAD_SECONDS = 1200
PREFILL_TOKENS = 7500

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(LONGEST_LOAD_SECONDS + 900),
    pytest.mark.skipif(
        not (VLLM.exists() and (MODEL / "config.json").exists()),
        reason="needs the real vLLM and its model: run `make up` once",
    ),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    with ExitStack() as stack:
        started = EngineUnderTest(
            tmp_path_factory.mktemp("vllm"),
            {
                "model": str(MODEL),
                "served_names": ["m"],
                "vllm": [str(VLLM)],
                "max_model_len": 8192,
                "max_num_seqs": 16,
                "kv_cache_memory_bytes": 256 << 20,
                "stop": {"drain_seconds": 30},
            },
            stack,
        )
        wait_for(started.ready, START_SECONDS, 0.2)
        yield started


def processes(running: EngineUnderTest, name: str) -> list[int]:
    """Processes of this supervisor's engine whose title is `name`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                belongs = _descends(int(entry.name), running.process.pid)
            except OSError:
                continue
            if name in title and belongs:
                found.append(int(entry.name))
    return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid == ancestor:
            return True
    return False


def cached(running: EngineUnderTest) -> dict[Path, int]:
    """Files of vLLM's own cache with the time of their last change."""
    (root,) = (Path(running.settings["cache_dir"])).glob("*-vllm-*")
    assert root.stat().st_mode & 0o777 == 0o700
    return {path: path.stat().st_mtime_ns for path in (root / "vllm").rglob("*") if path.is_file()}


class Stream(threading.Thread):
    """One streamed completion, read to its end."""

    def __init__(self, running: EngineUnderTest, tokens: int, prompt: str | list[int] = "Once upon") -> None:
        super().__init__(daemon=True)
        self._path = str(running.run / "api.sock")
        self._body = {
            "model": "m",
            "prompt": prompt,
            "max_tokens": tokens,
            "stream": True,
            "ignore_eos": True,
        }
        self.received = b""
        self.first = threading.Event()
        self.start()

    def run(self) -> None:
        data = json.dumps(self._body).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: e\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(self._path)
            sock.sendall(head.encode() + data)
            try:
                while chunk := sock.recv(65536):
                    self.received += chunk
                    if b"data:" in self.received:
                        self.first.set()
            except ConnectionError:
                pass

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[6:]) for line in self.received.splitlines() if line.startswith(b"data: {")]


def test_the_start_went_through_its_phases(running: EngineUnderTest) -> None:
    phases = [record["phase"] for record in running.log() if record["event"] == "start-up phase"]
    expected = [
        "starting vLLM",
        "initialising the engine",
        "loading weights",
        "sizing the KV cache",
        "warming up",
    ]
    assert [phase for phase in phases if phase in expected] == expected
    (warm,) = [record for record in running.log() if record["event"] == "warm-up answered"]
    assert warm["kinds"] == "completion, chat, long prompt"
    assert "vllm:kv_cache_usage_perc{" in running.metrics()


def test_the_plan_knows_the_number_of_kv_tokens(running: EngineUnderTest) -> None:
    (said,) = [message for message in running.messages() if "KV cache size:" in message]
    planned = cache_of(read_shape(MODEL), block=BLOCK_TOKENS_CPU).tokens(256 << 20, 8192)
    assert f"KV cache size: {planned:,} tokens" in said
    (compared,) = [record for record in running.log() if record["event"] == "plan and vLLM"]
    assert compared["planned_tokens"] == compared["tokens"] == planned
    assert f'llm_engine_kv_cache_tokens{{source="vllm"}} {float(planned)}' in running.metrics()


@pytest.mark.parametrize("seconds", [60, pytest.param(LONGEST_LOAD_SECONDS, marks=pytest.mark.slow)])
def test_mixed_load_and_a_long_prefill_raise_no_alarm(running: EngineUnderTest, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    streams = [Stream(running, 1, [11] * PREFILL_TOKENS)]
    lengths = (3, 40, 120, 7)
    while time.monotonic() < deadline:
        while sum(stream.is_alive() for stream in streams) < 6:
            streams.append(Stream(running, lengths[len(streams) % 4]))
        in_flight = sum(stream.is_alive() for stream in streams)
        running.state(f"?gateway=g&in_flight={in_flight}&oldest_silence=1")
        time.sleep(0.1)
    for stream in streams:
        stream.join(120)
    assert all(b"[DONE]" in stream.received for stream in streams)
    assert running.state()["generation"] == 1
    assert not any("engine failed" in message for message in running.messages())
    assert "llm_engine_seconds_since_last_token" in running.metrics()


def test_a_frozen_core_is_found_within_30_s_written_down_and_restarted(running: EngineUnderTest) -> None:
    generation = running.state()["generation"]
    stream = Stream(running, 4000)
    assert stream.first.wait(120)
    core, *_ = processes(running, "EngineCore")
    os.kill(core, signal.SIGSTOP)
    frozen = time.monotonic()
    wait_for(lambda: running.state("?gateway=g&in_flight=1")["state"] == "starting", 40)
    assert time.monotonic() - frozen < 30
    before = cached(running)
    wait_for(lambda: running.is_ready(generation + 1), START_SECONDS, 0.2)
    assert gone(core)
    # What the first start looked up of the model is used again, not made again.
    assert before
    assert cached(running).items() >= before.items()
    (report,) = running.state_dir.glob("post-mortem-*.txt")
    text = report.read_text()
    assert "VLLM::EngineCor: state T" in text
    assert "==== stacks" in text
    assert "Thread" in text


def test_a_killed_core_is_an_error_event_and_a_restart(running: EngineUnderTest) -> None:
    generation = running.state()["generation"]
    stream = Stream(running, 4000)
    assert stream.first.wait(120)
    core, *_ = processes(running, "EngineCore")
    os.kill(core, signal.SIGKILL)
    killed = time.monotonic()
    stream.join(60)
    assert not stream.is_alive()
    assert "error" in stream.events()[-1]
    wait_for(lambda: running.is_ready(generation + 1), START_SECONDS, 0.05)
    took = time.monotonic() - killed
    seconds = [record["seconds"] for record in running.log() if record["event"] == "warm-up answered"]
    beyond = took - seconds[-1]
    print(f"ready again {beyond:.2f} s after the {seconds[-1]:.0f} s that the start itself takes")
    # 2 s, and as much more as this machine is slower than two quiet cores.
    assert beyond < 2 * max(1.0, seconds[-1] / QUIET_START_SECONDS)
    assert 'llm_engine_restarts_total{cause="exit"} 1.0' in running.metrics()


def test_stop_lets_streams_end_and_leaves_no_process(running: EngineUnderTest) -> None:
    stream = Stream(running, 100)
    assert stream.first.wait(120)
    pids = processes(running, "")
    assert len(pids) >= 3
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    stream.join(60)
    assert len(stream.events()) == 100
    assert b"[DONE]" in stream.received
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [
        ({"extra_args": {"dtype": "nonsense"}}, 78, "vLLM refuses --dtype"),
        (
            {"kv_cache_memory_bytes": 16 << 20, "max_model_len": 8192},
            78,
            "does not hold one request of 8192 tokens",
        ),
        ({"model": "org/other"}, 78, "there is no such model: correct the key model"),
        ({"model": "org/tiny"}, 78, "the model is gated: accept its licence"),
    ],
)
def test_a_start_that_cannot_succeed_is_one_line(
    tmp_path: Path, settings: dict[str, Any], status: int, said: str
) -> None:
    mirror = Mirror()
    mirror.gated = True
    base = {"model": str(MODEL), "vllm": [str(VLLM)], "environment": {"HF_ENDPOINT": mirror.url}}
    with ExitStack() as stack:
        stack.callback(mirror.close)
        failing = EngineUnderTest(tmp_path, base | settings, stack)
        assert failing.process.wait(START_SECONDS) == status
        critical = [record["event"] for record in failing.log() if record["level"] == "critical"]
        assert len(critical) == 1
        assert said in critical[0]
