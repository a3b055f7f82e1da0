"""It goes nowhere it was not sent, stops when it must, and says what happened by its exit status."""

import hashlib
import signal
import subprocess
import time
from pathlib import Path

import pytest

from daemons.loadtest.measure.compare import load_result
from tests.integration.loadtest.conftest import Run, command, environment
from tests.integration.loadtest.scripted import Scripted, plain
from tests.support.mock_engine import MockEngine

WHOLE = ("--no-stream", "--output-tokens", "1")


def test_the_target_must_be_named() -> None:
    done = subprocess.run(command(), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2
    assert "--url" in done.stderr


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8080", "name the target in full"),
        ("http://", "name the target in full"),
        ("http://0.0.0.0:8080", "no host"),
        ("http://[::]:8080", "no host"),
        ("http://user:secret@localhost", "--key-file"),
        ("http://localhost:99999", "Port out of range"),
        ("ftp://localhost", "name the target in full"),
    ],
)
def test_targets_that_are_refused(run: Run, url: str, said: str) -> None:
    done = run(url)
    assert done.status == 78
    assert said in done.text
    assert "Traceback" not in done.text


def test_a_plan_cannot_name_the_target(run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("url: http://localhost:1\nmix: [{name: a, promt_tokens: 3}]\n")
    done = run("http://127.0.0.1:1", "--plan", str(plan))
    assert done.status == 78
    assert "plan.yaml:1: url: unknown key" in done.text
    assert "promt_tokens" in done.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--objective", "faster"), "write it like"),
        (("--shape", "ramp", "--rate", "1"), "load.ramp.to_rate (--to-rate): this key is required"),
        (("--find-capacity",), "--objective"),
        (("--json", "/nonexistent/x.json"), "no folder"),
        (("--compare", "/nonexistent.json"), "does not exist"),
        (("--key-file", "/nonexistent-key"), "does not exist"),
        (("--trace", "/nonexistent.csv"), "does not exist"),
    ],
)
def test_bad_options_are_one_clear_line(run: Run, options: tuple[str, ...], said: str) -> None:
    with MockEngine() as engine:
        done = run(engine.url, *options)
        assert engine.stats()["served"] == 0
    assert done.status == 78
    assert said in done.text
    assert "Traceback" not in done.text


def test_a_model_that_the_target_has_not_is_refused_before_anything_is_sent(run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("mix: [{name: a, model: nope}]\n")
    with MockEngine() as engine:
        for options in (("--model", "nope"), ("--plan", str(plan))):
            done = run(engine.url, *options)
            assert done.status == 78
            assert "no model 'nope'; it lists: " in done.text
        assert engine.stats()["served"] == 0


def test_a_target_without_embeddings_is_refused_before_the_load(run: Run, tmp_path: Path) -> None:
    for path in (None, tmp_path / "socket"):
        with Scripted(
            lambda connection: connection.sendall(plain(b"404 Not Found", b"")), path=path
        ) as server:
            done = run(server.url, "--endpoint", "embeddings", "--rate", "50", "--duration", "2s")
            assert server.answered == 1
        assert done.status == 78
        assert (
            "no embeddings of the model 'm' (404 from /v1/embeddings): name a model that embeds" in done.text
        )


def test_nobody_there(run: Run) -> None:
    with MockEngine() as engine:
        url = engine.url
    done = run(url)
    assert done.status == 4
    assert "no answer from 127.0.0.1" in done.text


def test_a_target_that_dies_ends_the_run(tmp_path: Path) -> None:
    saved = tmp_path / "r.json"
    with MockEngine(first_us=10_000) as engine:
        options = ("--url", engine.url, "--rate", "50", "--duration", "100s", "--json", str(saved), *WHOLE)
        tester = subprocess.Popen(
            command(*options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        while engine.stats()["served"] < 40:
            time.sleep(0.05)
        engine.kill()
        text, _ = tester.communicate(timeout=60)
    assert tester.returncode == 4, text
    result = load_result(saved)
    assert result.stopped_by == "target died"
    # The engine has served what was on its way when it was lost.
    assert result.overall.ok >= 20
    assert set(result.overall.outcomes) & {"connect_failed", "reset"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_when_asked_and_still_reports(tmp_path: Path, number: signal.Signals) -> None:
    saved = tmp_path / "r.json"
    with MockEngine(first_us=10_000) as engine:
        options = (
            "--url",
            engine.url,
            "--concurrency",
            "4",
            "--duration",
            "100s",
            "--json",
            str(saved),
            *WHOLE,
        )
        tester = subprocess.Popen(
            command(*options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        while engine.stats()["served"] < 40:
            time.sleep(0.05)
        tester.send_signal(number)
        text, _ = tester.communicate(timeout=60)
        while (served := engine.stats())["running"]:
            time.sleep(0.05)
    assert tester.returncode == 130, text
    result = load_result(saved)
    assert result.stopped_by == "asked"
    # The engine has served what was not read any more.
    assert result.overall.ok >= 20
    if number == signal.SIGINT:
        assert served["aborted"] == 0, "what was in flight was let end"


def test_a_generator_whose_conductor_is_lost_sends_nothing_more() -> None:
    with MockEngine(first_us=1000) as engine:
        options = ("--url", engine.url, "--rate", "200", "--duration", "100s", *WHOLE)
        tester = subprocess.Popen(
            command(*options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
        while engine.stats()["served"] < 20:
            time.sleep(0.05)
        tester.kill()
        tester.wait()
        before, deadline = -1, time.monotonic() + 30
        while (served := engine.stats()["served"]) != before:
            assert time.monotonic() < deadline
            before = served
            time.sleep(0.5)


@pytest.mark.parametrize(
    ("option", "reason"), [("--max-requests", "requests budget"), ("--max-tokens", "tokens budget")]
)
def test_budgets_are_never_exceeded(run: Run, option: str, reason: str) -> None:
    with MockEngine(first_us=1000, token_us=100) as engine:
        load = ("--concurrency", "4", "--output-tokens", "10", "--prompt-tokens", "30", "--duration", "100s")
        done = run(engine.url, *load, option, "2000" if "tokens" in option else "30")
        served = engine.stats()
    assert done.result.stopped_by == reason
    if "tokens" in option:
        assert served["tokens"] <= 2000
    else:
        assert served["served"] == 30


def test_a_generator_that_is_late_invalidates_the_run(run: Run) -> None:
    with MockEngine(first_us=1000) as engine:
        done = run(engine.url, "--rate", "200", "--requests", "100", "--max-lag", "0.001ms", *WHOLE)
    assert done.status == 3
    assert not done.result.valid
    assert "the generator sent late" in done.text


def test_objectives_decide_the_exit_status(run: Run) -> None:
    with MockEngine(first_us=20_000) as engine:
        load = ("--concurrency", "2", "--requests", "60", *WHOLE)
        met = run(engine.url, *load, "--objective", "e2e p95 < 60s", "--objective", "errors < 1%")
        missed = run(engine.url, *load, "--objective", "e2e p95 < 5ms", "--objective", "goodput > 50%")
    assert (met.status, missed.status) == (0, 1)
    assert met.result.overall.good == 60
    assert missed.result.overall.good == 0
    assert [c.met for c in missed.result.checks] == [False, False]
    assert "MISSED" in missed.text


def test_what_was_due_and_never_sent_is_said(run: Run) -> None:
    with MockEngine(first_us=400_000) as engine:
        load = ("--shape", "constant", "--rate", "50", "--concurrency", "1", "--max-requests", "3", *WHOLE)
        done = run(engine.url, *load, "--duration", "5s")
    assert "due but never sent" in done.text


def test_a_limit_that_binds_is_said_first(run: Run, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"sk-limited").hexdigest()
    (tmp_path / "key").write_text("sk-limited\n")
    keys = tmp_path / "keys.d"
    keys.mkdir()
    (keys / "broken.yaml").write_text("{")
    (keys / "a.yaml").write_text(f"name: a\nsecrets: ['sha256:{digest}']\nlimits: {{concurrency: 2}}\n")
    with MockEngine(first_us=1000) as engine:
        options = ("--key-file", str(tmp_path / "key"), "--keys-dir", str(keys), "--requests", "10", *WHOLE)
        tight = run(engine.url, *options, "--concurrency", "8")
        wide = run(engine.url, *options, "--concurrency", "2")
    assert "its limit of 2 concurrency binds" in tight.text
    assert tight.text.index("binds") < tight.text.index("requests/s")
    assert "its limit" not in wide.text
    assert "sk-limited" not in tight.text
    assert "sk-limited" not in tight.result.plan["keys"].__repr__()
