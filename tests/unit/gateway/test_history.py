"""What is kept of the last requests: whole, found by identifier, in a memory that does not grow."""

import tracemalloc
from typing import Any

from daemons.gateway.history import History, Record


def record(request_id: str, **more: Any) -> Record:
    values: dict[str, Any] = {
        "request_id": request_id,
        "key": "team",
        "model": "llama-8b",
        "endpoint": "chat",
        "priority": "default",
        "stream": True,
        "outcome": "ok",
        "status": 200,
        "client": "192.0.2.77",
        "engine": "llama-8b-gpu0",
        "prompt_tokens": 1500,
        "cached_tokens": 0,
        "completion_tokens": 300,
        "queue_ms": 0.5,
        "engine_ms": 250.125,
        "ttft_ms": 250.75,
        "duration_ms": 12000.0,
        "bytes_in": 6200,
        "bytes_out": 70000,
        "retries": 0,
    }
    return Record(**{**values, **more})


def test_a_record_is_found_as_it_was() -> None:
    history = History(10)
    plain = record("a")
    refused = record("b", model="\u6a21" * 128, engine=None, engine_ms=None, ttft_ms=None, outcome="x")
    for one in (plain, refused):
        history.add(one)
    assert history.find("a") == plain
    assert history.find("b") == refused


def test_only_the_whole_identifier_finds_a_record_and_the_latest_one() -> None:
    history = History(10)
    for one in (record("abc", retries=1), record("abc", retries=2), record("x", key="abc", model="abc")):
        history.add(one)
    found = history.find("abc")
    assert found is not None
    assert found.retries == 2
    for unknown in ("ab", "bc", "", "team"):
        assert history.find(unknown) is None


def test_the_oldest_make_room() -> None:
    history = History(3)
    for number in range(4):
        history.add(record(f"r{number}"))
    assert history.find("r0") is None
    assert history.find("r1") is not None


def test_its_memory_is_taken_at_the_start() -> None:
    records = [record(f"{number:032x}") for number in range(3000)]
    tracemalloc.start()
    try:
        history = History(1000)
        at_first, _ = tracemalloc.get_traced_memory()
        for one in records:
            history.add(one)
        later, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert later < 1.25 * at_first
