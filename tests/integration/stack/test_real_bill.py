"""The bill of the real vLLM: the ledger against its own counters, with streams left in their midst."""

import http.client
import json
import random
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from daemons.gateway.tenants.reconcile import Tokens, read_counters
from daemons.runtime.control import decode_report
from tests.integration.stack.conftest import Up

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

REQUESTS = 45
PATIENCE_SEC = 120.0


def get(path: Path, target: str) -> bytes:
    """GET over a unix socket."""
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(PATIENCE_SEC)
        sock.connect(str(path))
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n".encode())
        response = http.client.HTTPResponse(sock)
        response.begin()
        return response.read()


def counted(up: Up) -> Tokens:
    """What the engine counted for others than its supervisor."""
    engine = yaml.safe_load((up.state / "gateway.yaml").read_text())["engines"][0]
    api = Path(urlsplit(engine["url"]).path)
    report = decode_report(get(api.parent / "control.sock", "/state"))
    counters = read_counters(get(api, "/metrics"))
    assert counters is not None
    assert report.own_prompt_tokens > 0
    return Tokens(
        counters.prompt - report.own_prompt_tokens, counters.completion - report.own_completion_tokens
    )


def billed(up: Up) -> tuple[int, int, Tokens]:
    """Requests in the ledger, those left by their clients, and tokens."""
    with closing(sqlite3.connect(up.state / "ledger.db")) as ledger:
        row = ledger.execute(
            "SELECT count(*), coalesce(sum(outcome = 'client_gone'), 0), coalesce(sum(prompt), 0), "
            "coalesce(sum(completion), 0) FROM requests"
        ).fetchone()
    return row[0], row[1], Tokens(row[2], row[3])


def ask(up: Up, number: int) -> None:
    """One request; every third is left after some of its stream."""
    dice = random.Random(number)  # noqa: S311 - which request does what
    leave, parts = number % 3 == 0, urlsplit(up.url)
    body = {
        "model": "llama-7b",
        "messages": [{"role": "user", "content": f"Count to {number}. " * dice.randint(1, 12)}],
        "max_tokens": 120 if leave else dice.randint(1, 16),
        "stream": leave or number % 2 == 0,
    }
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE_SEC)
    with closing(connection):
        headers = {"Authorization": f"Bearer {up.key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        if leave:
            for _ in range(2 * dice.randint(2, 5)):
                response.readline()
        else:
            response.read()


def test_the_ledger_equals_the_counters_of_the_real_vllm(real: Up) -> None:
    rows_before, _, bill_before = billed(real)
    before = counted(real)
    with ThreadPoolExecutor(3) as clients:
        list(clients.map(lambda number: ask(real, number), range(REQUESTS)))
    deadline = time.monotonic() + PATIENCE_SEC
    while billed(real)[0] < rows_before + REQUESTS:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    _, left, bill = billed(real)
    # An engine that was left ends its step first.
    time.sleep(1.0)
    after = counted(real)
    engine = Tokens(after.prompt - before.prompt, after.completion - before.completion)
    ledger = Tokens(bill.prompt - bill_before.prompt, bill.completion - bill_before.completion)
    print(f"engine {engine}, ledger {ledger}, {left} left in their midst")
    assert engine.prompt == ledger.prompt
    assert left >= REQUESTS / 4
    assert 0 <= engine.completion - ledger.completion <= left
