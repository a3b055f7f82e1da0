"""Servers that split, hurry, lie, refuse, vanish or echo secrets: the run ends and says what happened."""

import shutil
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.loadtest.conftest import Run, command, environment
from tests.integration.loadtest.scripted import DONE, EVENTS, USAGE, Scripted, event, plain, stream
from tests.support.mock_engine import MockEngine

SECRET = "sk-test-key"
LOAD = ("--requests", "30", "--concurrency", "4")


def bytewise(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in stream():
        connection.sendall(bytes([byte]))


def interim(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
    connection.sendall(stream())


def unannounced_close(connection: socket.socket) -> bool:
    connection.sendall(stream())
    return True


def announced_close(connection: socket.socket) -> bool:
    connection.sendall(stream(header=b"connection: close\r\n"))
    return True


def until_close(connection: socket.socket) -> bool:
    body = EVENTS + USAGE + DONE
    connection.sendall(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + body)
    return True


@pytest.mark.parametrize("behaviour", [bytewise, interim, unannounced_close, announced_close, until_close])
def test_odd_but_right_answers_are_right(run: Run, behaviour: Callable[[socket.socket], bool | None]) -> None:
    with Scripted(behaviour) as server:
        done = run(server.url, *LOAD)
    group = done.result.overall
    assert (done.status, group.ok, group.output_tokens) == (0, 30, 60)
    assert server.answered == 30, "no request was sent to a server twice"


def reset(connection: socket.socket) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return True


@pytest.mark.parametrize(
    ("sent", "outcome", "said"),
    [
        (stream() + b"HTTP/1.1 200 OK\r\n", "malformed", "bytes after the end"),
        (stream(EVENTS + USAGE), "cut", None),
        (plain(b"200 OK", b"hello"), "malformed", "no event stream"),
        (plain(b"429 Slow down", b'{"error":{"message":"too many"}}'), "rate_limited", "429 too many"),
        (plain(b"400 Bad", b'{"object":"error","message":"too long"}'), "client_error", "400 too long"),
        (plain(b"500 Oh", b'{"detail":"broken"}'), "server_error", "500 broken"),
        (plain(b"502 Oh", b"<html>\x1b[31m[/bold]\n</html>"), "server_error", "<html> [31m[/bold] </html>"),
    ],
)
def test_a_failure_comes_with_the_reason_that_was_given(
    run: Run, sent: bytes, outcome: str, said: str | None
) -> None:
    with Scripted(lambda connection: connection.sendall(sent)) as server:
        done = run(server.url, "--requests", "3", "--concurrency", "1")
    assert done.status == 1, "the target is there, and no request succeeded"
    assert done.result.overall.outcomes == {outcome: 3}
    if said is not None:
        assert said in done.result.reasons[outcome]
        assert said in done.text


def test_connections_that_are_reset_are_a_target_that_is_gone(run: Run) -> None:
    with Scripted(reset) as server:
        done = run(server.url, "--requests", "4", "--concurrency", "2")
    assert done.result.overall.outcomes == {"reset": 4}
    assert done.status == 4


def test_a_secret_that_the_target_repeats_appears_nowhere(run: Run, tmp_path: Path) -> None:
    body = b'{"error":{"message":"your key is %s"}}' % SECRET.encode()
    page = tmp_path / "page.html"
    with Scripted(lambda connection: connection.sendall(plain(b"403 No", body))) as server:
        done = run(server.url, "--requests", "3", "--html", str(page))
    assert done.result.reasons == {"unauthorised": "403 your key is ***"}
    saved = (tmp_path / "result.json").read_text()
    assert SECRET not in done.text + saved + page.read_text()


def test_the_secret_is_in_no_argument_and_no_environment_of_the_generator(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-from-a-file\n")
    with MockEngine(first_us=1000) as engine:
        options = ("--url", engine.url, "--rate", "20", "--duration", "60s", "--key-file", str(key))
        tester = subprocess.Popen(command(*options), stdout=subprocess.DEVNULL, env=environment())
        while not engine.stats()["served"]:
            time.sleep(0.05)
        of = Path(f"/proc/{tester.pid}/task/{tester.pid}/children").read_text().split()
        seen = b"".join(
            (Path("/proc") / pid / name).read_bytes() for pid in of for name in ("cmdline", "environ")
        )
        tester.send_signal(signal.SIGTERM)
        tester.wait(30)
    assert of
    assert b"daemons.loadtest.client" in seen
    assert b"sk-from-a-file" not in seen


def test_a_slow_reader_is_no_stall_of_the_target(run: Run, tmp_path: Path) -> None:
    """What it reads at once it takes eight seconds for, and asks for no more meanwhile."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "timeouts: {stall: 6}\nmix: [{name: slow, slow_reader: {fraction: 1, bytes_per_second: 250}}]\n"
    )
    long = event({"choices": [{"delta": {"content": "a" * 2000}}]})
    whole = stream(long + EVENTS + USAGE + DONE)

    def in_two(connection: socket.socket) -> None:
        connection.sendall(whole[:2000])
        server.wait(0.3)
        connection.sendall(whole[2000:])

    with Scripted(in_two) as server:
        done = run(server.url, "--plan", str(plan), "--concurrency", "1", "--requests", "1")
    assert done.result.overall.outcomes == {"ok": 1}


def test_answers_without_usage_are_said(run: Run) -> None:
    with Scripted(lambda connection: connection.sendall(stream(EVENTS + DONE))) as server:
        done = run(server.url, *LOAD)
    group = done.result.overall
    assert (group.ok, group.without_usage, group.output_tokens) == (30, 30, 0)
    assert "30 answers had no usage" in done.text
    assert "tpot" not in group.latencies


def test_what_never_ends_misses_its_objective(run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("timeouts: {drain: 0.3}\nobjectives: ['e2e p95 < 10s']\n")
    with MockEngine(first_us=60_000_000) as engine:
        done = run(engine.url, "--plan", str(plan), "--shape", "constant", "--rate", "10", "--requests", "5")
    assert done.result.stopped_by == "complete", "nobody asked it to stop"
    assert done.status == 1
    assert done.result.overall.outcomes == {"abandoned": 5}


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of 127.0.0.1 with its key in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("makes a certificate: install openssl")
    made = tmp_path / "certificate.pem"
    options = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    key = tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", *options, *subject, "-keyout", str(key), "-out", str(made)],
        check=True,
        capture_output=True,
    )
    made.write_text(made.read_text() + key.read_text())
    return made


def test_tls_is_checked_and_a_private_authority_can_be_named(
    run: Run, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Scripted(bytewise, context=context) as server:
        refused = run(server.url, *LOAD)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusted = run(server.url, *LOAD)
    assert refused.status == 4
    assert "SSL_CERT_FILE" in refused.text
    assert "Traceback" not in refused.text
    assert (trusted.status, trusted.result.overall.ok) == (0, 30)


def test_a_unix_socket(run: Run, tmp_path: Path) -> None:
    with Scripted(interim, path=tmp_path / "s") as server:
        assert run(server.url, *LOAD).result.overall.ok == 30


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1", "Connection refused"),
        ("http://a..b", "no host of that name"),
        ("unix:///nowhere.sock", "No such file"),
    ],
)
def test_why_nobody_answers_is_said(run: Run, url: str, said: str) -> None:
    done = run(url)
    assert done.status == 4
    assert said in done.text
    assert "Traceback" not in done.text


def test_https_to_a_server_without_tls(run: Run) -> None:
    with Scripted(bytewise, greeting=plain(b"400 Bad Request", b"")) as server:
        done = run(server.url.replace("http:", "https:"))
    assert done.status == 4
    assert "does not speak TLS" in done.text


@pytest.mark.parametrize("key", ["two\nlines", "ké"])
def test_a_key_in_the_environment_that_is_none(key: str) -> None:
    with MockEngine() as engine:
        done = subprocess.run(
            command("--url", engine.url), capture_output=True, text=True, env=environment(key), check=False
        )
    assert done.returncode == 78
    assert "$LLM_API_KEY: expected one API key" in done.stdout + done.stderr
    assert key not in done.stdout + done.stderr


def begin(url: str, *options: str) -> "subprocess.Popen[str]":
    """Start a load test."""
    return subprocess.Popen(
        command("--url", url, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether the process has been sent a signal that has not reached it (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pending = next(line for line in lines if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) & 1 << (number - 1))


def test_ctrl_c_before_the_first_request(tmp_path: Path) -> None:
    with Scripted(bytewise, greeting=b"") as server:
        tester = begin(server.url)
        assert server.accepted.wait(60)
        tester.send_signal(signal.SIGINT)
        text, _ = tester.communicate(timeout=30)
    assert tester.returncode == 130, text
    assert "Traceback" not in text


def test_ctrl_c_twice_does_not_wait_for_the_target() -> None:
    with MockEngine(first_us=600_000_000) as engine:
        tester = begin(engine.url, "--rate", "50", "--duration", "600s")
        while engine.stats()["running"] < 5:
            time.sleep(0.05)
        tester.send_signal(signal.SIGINT)
        # Two that wait together would be one.
        while is_pending(tester.pid, signal.SIGINT):
            time.sleep(0.01)
        tester.send_signal(signal.SIGINT)
        text, _ = tester.communicate(timeout=30)
    assert tester.returncode == 130, text
    assert "Traceback" not in text


def test_a_search_that_is_interrupted_ends_and_says_so(tmp_path: Path) -> None:
    with MockEngine(first_us=1000) as engine:
        options = ("--find-capacity", "--objective", "e2e p95 < 60s", "--rate", "20", "--duration", "2s")
        # A generator that is late ends a search, too.
        tester = begin(engine.url, "--max-lag", "10s", *options)
        while engine.stats()["served"] < 60:  # the second rate, by now
            time.sleep(0.05)
        tester.send_signal(signal.SIGINT)
        text, _ = tester.communicate(timeout=30)
    assert tester.returncode == 130, text
    assert "the search was ended: asked" in text


def test_the_budget_of_a_search_is_that_of_all_its_runs(run: Run) -> None:
    with MockEngine(first_us=1000) as engine:
        options = ("--find-capacity", "--objective", "e2e p95 < 60s", "--rate", "20", "--duration", "2s")
        done = run(engine.url, *options, "--max-requests", "100")
        served = engine.stats()["served"]
    assert served == 100
    assert "the search was ended: requests budget" in done.text


def test_the_token_budget_of_a_search_holds_where_no_usage_is_stated(run: Run) -> None:
    with Scripted(lambda connection: connection.sendall(stream(EVENTS + DONE))) as server:
        lengths = ("--prompt-tokens", "10", "--output-tokens", "10", "--max-tokens", "600")
        search = ("--find-capacity", "--objective", "e2e p95 < 5s", "--rate", "20", "--duration", "1s")
        run(server.url, *search, *lengths)
        assert server.answered <= 600 / 20
