"""The faults on command, the ends of a process, the starts that fail."""

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.integration.simulator.conftest import CHAT, Simulator, Start, wait_for
from tests.integration.simulator.streams import Stream, conversation, text_of

COUNTERS = ("vllm:generation_tokens_total", "vllm:kv_cache_usage_perc", "vllm:num_requests_running")


def faulty(start: Start, *flags: str) -> Simulator:
    return start("--sim-faults", "--sim-inter-token-ms", "5", *flags)


def put(server: Simulator, **fault: Any) -> None:
    status, body = server.ask("/sim/faults", fault)
    assert status == 200, body


def lasting(server: Simulator) -> None:
    """Half a second a token until faults are cleared: streams are still there when this process looks."""
    put(server, fault="slow", factor=100)


def test_a_hang_is_invisible_but_for_counters_that_stand_still(start: Start) -> None:
    server = faulty(start, "--sse-keep-alive-interval", "1")
    lasting(server)
    with Stream(server.port, body=conversation(max_tokens=200)) as stream:
        events = stream.events()
        next(events)
        put(server, fault="hang")
        frozen = [server.metric(name) for name in COUNTERS]
        assert server.ask("/health")[0] == 200
        # The next comment comes a second after the last token: a second in which nothing moved.
        assert any(event == ": keep-alive" for event in events)
        assert [server.metric(name) for name in COUNTERS] == frozen
        assert frozen[2] == 1.0
        assert server.ask("/sim/faults", method="DELETE")[0] == 200
        assert list(events)[-1] == "[DONE]"


def test_death_says_so_in_every_form_and_exits_with_0(start: Start) -> None:
    server = faulty(start)
    port = server.port
    long = conversation(max_tokens=5000)
    with (
        Stream(port, body=long) as chat,
        Stream(port, "/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 5000}) as completion,
        Stream(port, "/v1/messages", long) as messages,
        Stream(port, "/v1/responses", {"input": "x", "stream": True}) as responses,
    ):
        for stream in (chat, completion, messages, responses):
            next(stream.chunks())
        put(server, fault="death")
        expected = (
            '{"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root '
            'cause.", "type": "InternalServerError", "param": null, "code": 500}}'
        )
        assert chat.rest()[-2:] == [expected, "[DONE]"]
        assert completion.rest()[-2:] == [expected, "[DONE]"]
        assert messages.rest()[-1].startswith("event: error\n")
        assert "[DONE]" not in responses.rest()[-1]
        assert (chat.status, chat.complete, responses.complete) == (200, True, False)
    assert server.wait() == 0
    assert "EngineDeadError" in server.output


def test_slow_tokens(start: Start) -> None:
    server = faulty(start, "--sim-jitter", "0")
    put(server, fault="slow", factor=20)
    server.ask(CHAT, conversation(stream=False, max_tokens=5))
    # The first token may be late, and the next one makes up for as much as a step takes otherwise.
    assert server.metric("vllm:inter_token_latency_seconds_sum") >= (4 * 20 - 1) * 0.005 * 0.99


@pytest.mark.parametrize(("kind", "complete"), [("truncate", False), ("cut", True), ("reset", False)])
def test_a_stream_that_breaks(start: Start, kind: str, complete: bool) -> None:
    server = faulty(start)
    put(server, fault=kind, after_chunks=4, requests=1)
    got: list[str] = []
    with Stream(server.port, body=conversation(max_tokens=50)) as stream:
        if kind == "reset":
            with pytest.raises(ConnectionResetError):
                got.extend(stream.events())
        else:
            got.extend(stream.events())
            assert len(got) == 4
        assert stream.complete is complete
    assert "[DONE]" not in got
    assert all(json.loads(event)["choices"][0]["finish_reason"] is None for event in got)
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0.0)
    with Stream(server.port, body=conversation(max_tokens=5)) as whole:
        assert whole.rest()[-1] == "[DONE]"


def test_a_malformed_event_among_good_ones(start: Start) -> None:
    server = faulty(start)
    put(server, fault="malformed", after_chunks=2)
    with Stream(server.port, body=conversation(max_tokens=5)) as stream:
        events = stream.rest()
    with pytest.raises(json.JSONDecodeError):
        json.loads(events[2])
    assert events[-1] == "[DONE]"
    assert len(events) == 1 + 5 + 1 + 1


def test_busy_for_as_many_requests_as_asked(start: Start) -> None:
    server = faulty(start)
    put(server, fault="busy", requests=2)
    body = conversation(stream=False, max_tokens=1)
    assert [server.ask(CHAT, body)[0] for _ in range(3)] == [503, 503, 200]


def test_a_fault_from_the_start(start: Start) -> None:
    server = start("--sim-fault", "busy,requests=1")
    assert server.ask(CHAT, conversation())[0] == 503
    assert server.ask("/sim/faults")[0] == 404


def test_a_fault_that_is_none_is_refused(start: Start) -> None:
    server = faulty(start)
    status, body = server.ask("/sim/faults", {"fault": "explode"})
    assert status == 400
    assert "'hang', 'death'" in body["error"]["message"]
    put(server, fault="slow")
    assert [fault["fault"] for fault in server.ask("/sim/faults")[1]] == ["slow"]


def test_a_slow_start_accepts_no_connection_yet_and_ends_at_once(start: Start) -> None:
    server = start("--sim-startup-seconds", "600", serving=False)
    wait_for(lambda: "Starting to load model" in server.output or "Resolved architecture" in server.output)
    assert "Starting vLLM server" not in server.output
    assert server.end() == 0


def test_sigterm_without_a_timeout_leaves_streams_hanging_until_their_clients_leave(start: Start) -> None:
    server = start()
    port = server.port
    with Stream(port, body=conversation(max_tokens=8000)) as stream:
        next(stream.events())
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: _refused(port))
        stream.sock.settimeout(1)
        with pytest.raises(TimeoutError):
            stream.rest()
        assert server.process.poll() is None
    assert server.wait() == 0


def test_sigterm_with_a_timeout_drains(start: Start) -> None:
    server = faulty(start, "--shutdown-timeout", "60")
    lasting(server)
    body = conversation(max_tokens=150)
    with Stream(server.port, body=body) as stream:
        events = stream.events()
        next(events)
        # Nothing ends before everything was looked at.
        put(server, fault="hang")
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "mode=drain" in server.output)
        assert server.ask("/health")[0] == 200
        status, answer = server.ask(CHAT, body)
        assert (status, answer["error"]["message"]) == (500, "cannot schedule new futures after shutdown")
        assert server.ask("/sim/faults", method="DELETE")[0] == 200
        rest = list(events)
    assert rest[-1] == "[DONE]"
    assert len(rest) == 150 + 1
    assert text_of(rest)
    assert server.wait() == 0


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def test_a_port_in_use_ends_the_start_before_the_load(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        server = start("--host", "127.0.0.1", "--port", port, serving=False)
        assert server.wait() == 1
    assert "OSError: [Errno 98] Address already in use" in server.output
    assert "Resolved architecture" not in server.output


def test_a_folder_that_is_not_there(start: Start, tmp_path: Path) -> None:
    server = start(model=str(tmp_path / "none"), serving=False)
    assert server.wait() == 1
    assert "Repo id must be in the form" in server.output


def test_too_small_a_cache(start: Start) -> None:
    server = start("--kv-cache-memory-bytes", "1M", serving=False)
    assert server.wait() == 1
    assert "To serve at least one request" in server.output


def test_an_unknown_flag(start: Start) -> None:
    server = start("--swap-space", "4", serving=False)
    assert server.wait() == 2
    assert "error: unrecognized arguments: --swap-space 4" in server.output
