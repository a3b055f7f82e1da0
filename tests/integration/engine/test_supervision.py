"""`llm-engine` as a process, with a stand-in for vLLM that fails on command."""

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.integration.engine.conftest import FAKE, PROJECT, Launcher, gone, wait_for

FAST = {"first_delay_seconds": 0.05, "longest_delay_seconds": 0.2}


def core_of(model: Path) -> int:
    return int((model / "core.pid").read_text())


def test_starts_with_phases_and_is_ready_only_after_a_real_answer(engine: Launcher, model: Path) -> None:
    running = engine()
    wait_for(running.ready)
    statuses = [line for told in running.notifications() for line in told.splitlines() if "STATUS" in line]
    phases = [status.removeprefix("STATUS=starting: ") for status in statuses if "starting:" in status]
    assert phases[:4] == [
        "starting vLLM",
        "initialising the engine",
        "loading weights",
        "loading weights 50 %",
    ]
    assert phases[-1] == "warming up"
    assert any("EXTEND_TIMEOUT_USEC" in told for told in running.notifications())
    assert running.state()["state"] == "ready"
    metrics = running.metrics()
    assert 'llm_engine_startup_phase_seconds{phase="loading weights"}' in metrics
    assert 'llm_engine_state{state="ready"} 1.0' in metrics
    assert "vllm:generation_tokens_total" in metrics
    assert metrics.count("\nprocess_resident_memory_bytes ") == 1
    environment = json.loads((model / "environment.json").read_text())
    assert "NOTIFY_SOCKET" not in environment
    assert environment["VLLM_NO_USAGE_STATS"] == environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("mode", "status", "said"),
    [
        ("bad-flag", 78, "vLLM does not know --swap-space 4: correct extra_args"),
        ("no-space", 78, "the disk is full"),
        ("gated", 78, "the model is gated"),
        ("out-of-memory", 78, "the GPU's memory is exhausted: see `llmctl plan`"),
        ("memory-taken", 1, "only 3.1 of 47.5 GiB of GPU memory are free"),
        ("port-taken", 1, "an address vLLM needs is already in use"),
        ("unknown", 1, "RuntimeError: the flux capacitor is empty"),
        ("warm-up-fails", 1, "the first request failed: completion: HTTP 500: broken"),
    ],
)
def test_a_start_that_cannot_succeed_ends_with_one_line(
    engine: Launcher, mode: str, status: int, said: str
) -> None:
    running = engine(mode)
    assert running.process.wait(60) == status
    critical = [record["event"] for record in running.log() if record["level"] == "critical"]
    assert len(critical) == 1
    assert said in critical[0]


def test_a_start_that_stands_still_is_given_up_and_leaves_nothing(engine: Launcher, model: Path) -> None:
    running = engine("stalls", startup={"stall_seconds": 6})
    assert running.process.wait(60) == 1
    assert "stands still: initialising the engine" in running.messages()[-1]
    assert gone(core_of(model))


def test_a_start_beyond_the_cap_is_given_up(engine: Launcher) -> None:
    running = engine("stalls", startup={"cap_seconds": 1})
    assert running.process.wait(60) == 1
    assert "did not start within 1 s" in running.messages()[-1]


def test_an_exit_with_status_0_is_a_failure_and_restarts_within_budget(engine: Launcher, model: Path) -> None:
    running = engine(restart=FAST | {"budget": 2})
    wait_for(running.ready)
    for generation in (2, 3):
        first = core_of(model)
        running.api("POST", "/fake/exit")
        wait_for(partial(running.is_ready, generation))
        assert gone(first)
    assert 'llm_engine_restarts_total{cause="exit"} 2.0' in running.metrics()
    running.api("POST", "/fake/exit")
    assert running.process.wait(60) == 1
    assert "failed 3 times" in running.messages()[-1]


def test_a_silent_hang_is_found_though_health_says_200(engine: Launcher, model: Path) -> None:
    running = engine(restart=FAST, watchdog={"interval_seconds": 1, "misses": 3})
    wait_for(running.ready)
    core = core_of(model)
    running.api("POST", "/fake/hang")
    assert running.api("GET", "/health")[0] == 200
    wait_for(lambda: running.is_ready(2))
    assert gone(core)
    (report,) = running.state_dir.glob("post-mortem-*.txt")
    text = report.read_text()
    assert "nothing moved in 3 looks with work in flight: 1 running" in text
    assert str(core) in text
    assert "Starting vLLM server" in text
    assert str(report) in [record.get("file") for record in running.log()]
    assert 'llm_engine_restarts_total{cause="hang"} 1.0' in running.metrics()


def test_a_hang_in_idleness_is_found_by_a_probe(engine: Launcher) -> None:
    running = engine(restart=FAST, watchdog={"interval_seconds": 1, "misses": 3, "idle_probe_seconds": 1})
    wait_for(running.ready)
    running.api("POST", "/fake/wedge")
    wait_for(lambda: running.is_ready(2))
    (report,) = running.state_dir.glob("post-mortem-*.txt")
    assert "0 running, 0 waiting" in report.read_text()
    assert "a probe unanswered" in report.read_text()


def test_where_nobody_may_read_stacks_the_processes_write_their_own(engine: Launcher, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "bin" / "py-spy").write_text("#!/bin/sh\necho Permission denied\nexit 1\n")
    (tmp_path / "bin" / "py-spy").chmod(0o755)
    running = engine(
        vllm=[str(tmp_path / "bin" / "python"), str(FAKE)],
        restart=FAST,
        watchdog={"interval_seconds": 1, "misses": 3},
    )
    wait_for(running.ready)
    running.api("POST", "/fake/hang")
    wait_for(lambda: running.is_ready(2))
    (report,) = running.state_dir.glob("post-mortem-*.txt")
    stacks = report.read_text().partition("==== stacks")[2].partition("==== GPUs")[0]
    assert "Permission denied" in stacks
    assert "Fatal Python error: Aborted" in stacks
    assert "serve_forever" in stacks


def test_slow_clients_are_no_hang(engine: Launcher) -> None:
    running = engine(watchdog={"interval_seconds": 1, "misses": 4})
    wait_for(running.ready)
    answered = int(running.metrics().split("vllm:generation_tokens_total{")[1].split()[1].split(".")[0])

    def probes() -> int:
        # The gateway goes on saying that a request is in flight: only the probes move the counters.
        running.state("?gateway=g1&in_flight=1&oldest_silence=30")
        text = running.metrics().split("vllm:generation_tokens_total{")[1].split()[1]
        return int(text.split(".")[0]) - answered

    wait_for(lambda: probes() >= 3)
    assert running.state()["generation"] == 1


@pytest.mark.parametrize(
    "mode", ["works", "ignores-term", "core-in-own-session", "ignores-term core-in-own-session"]
)
def test_stop_leaves_no_process(engine: Launcher, model: Path, mode: str) -> None:
    running = engine(mode, stop={"drain_seconds": 0, "announce_seconds": 0.2, "kill_seconds": 0.5})
    wait_for(running.ready)
    core = core_of(model)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    assert gone(core)

    def asked_for_time() -> bool:
        told = iter(running.notifications())
        return any("STOPPING=1" in message for message in told) and any(
            "EXTEND_TIMEOUT_USEC" in message for message in told
        )

    wait_for(asked_for_time)


def test_a_supervisor_that_is_killed_takes_vllm_along(engine: Launcher, model: Path) -> None:
    running = engine()
    wait_for(running.ready)
    running.process.kill()
    running.process.wait()
    wait_for(lambda: not _answers(running.run / "api.sock"))
    os.kill(core_of(model), signal.SIGKILL)


def _answers(path: Path) -> bool:
    from tests.integration.engine.conftest import ask

    try:
        return ask(path, "GET", "/health")[0] == 200
    except OSError:
        return False


def test_stop_waits_until_the_gateway_has_seen_that_it_drains(engine: Launcher, model: Path) -> None:
    running = engine(stop={"drain_seconds": 0, "announce_seconds": 120, "kill_seconds": 1})
    wait_for(running.ready)
    running.state("?gateway=g1&in_flight=0")
    running.process.send_signal(signal.SIGTERM)
    wait_for(lambda: running.state().get("state") == "draining")
    assert _answers(running.run / "api.sock")
    assert running.state("?gateway=g1")["reason"] == "stopping"
    # Not as long as it would wait for a gateway that asks no more.
    assert running.process.wait(60) == 0


def test_a_stop_that_waits_for_no_gateway_does_not_complain_of_one(engine: Launcher, model: Path) -> None:
    running = engine(stop={"drain_seconds": 0, "announce_seconds": 0, "kill_seconds": 1})
    wait_for(running.ready)
    running.state("?gateway=g1&in_flight=0")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    assert not [record for record in running.log() if "did not ask" in str(record["event"])]


def test_drain_and_undrain(engine: Launcher) -> None:
    running = engine()
    wait_for(running.ready)
    from tests.integration.engine.conftest import ask

    control = running.run / "control.sock"
    assert '"draining"' in ask(control, "POST", "/drain", "maintenance")[1]
    assert running.state()["state"] == "draining"
    assert '"ready"' in ask(control, "POST", "/undrain")[1]
    assert ask(control, "GET", "/state?gateway=g&in_flight=many")[0] == 400


def test_a_second_engine_of_the_same_name_is_refused(engine: Launcher, tmp_path: Path) -> None:
    running = engine()
    wait_for(running.ready)
    second = subprocess.run(
        [sys.executable, "-m", "daemons.engine", "engine", "--config", str(running.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=PROJECT,
    )
    assert second.returncode == 1
    assert "already in use" in second.stderr
    assert running.is_ready(1)


def test_a_metrics_port_that_is_taken_is_one_line(engine: Launcher) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        running = engine(metrics={"host": "127.0.0.1", "port": taken.getsockname()[1]})
        assert running.process.wait(60) == 1
    (said,) = [record["event"] for record in running.log() if record["level"] == "critical"]
    assert "already in use" in said


def test_the_cache_is_kept_for_the_next_start(engine: Launcher, model: Path) -> None:
    first = engine()
    wait_for(first.ready)
    cache = Path(json.loads((model / "environment.json").read_text())["VLLM_CACHE_ROOT"])
    assert cache.parent.stat().st_mode & 0o777 == 0o700
    cache.mkdir(parents=True)
    (cache / "compiled").write_text("x")
    first.end()
    second = engine()
    wait_for(second.ready)
    again = Path(json.loads((model / "environment.json").read_text())["VLLM_CACHE_ROOT"])
    assert (again / "compiled").read_text() == "x"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "/does/not/exist"}, "model: the folder /does/not/exist does not exist"),
        ({"vllm": ["/does/not/exist/vllm"]}, "/does/not/exist/vllm does not exist: install vLLM"),
        ({"vllm_version": "0.6.6"}, "vLLM 0.6.6 has known holes"),
        ({"extra_args": {"swap-space": 4}}, "set the key kv_offload_gib instead"),
        ({"extra_args": {"disable-log-requests": True}}, "has no --disable-log-requests: leave it out"),
        ({"max_model_len": "many", "modle": 1}, "modle: unknown key"),
    ],
)
def test_check_says_every_fault(tmp_path: Path, model: Path, settings: dict[str, object], said: str) -> None:
    import yaml

    good = {
        "model": str(model),
        "served_names": ["m"],
        "gpus": [],
        "metrics": {"port": 0},
        "vllm": [sys.executable],
        "vllm_version": "0.32.0",
    }
    if "vllm" in settings:
        del good["vllm_version"]
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump(good | settings))
    checked = subprocess.run(
        [sys.executable, "-m", "daemons.engine", "e", "--config", str(file), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=PROJECT,
    )
    assert checked.returncode == 78
    assert said in checked.stderr
    assert "Traceback" not in checked.stderr
