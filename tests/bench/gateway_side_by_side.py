"""The gateway beside nginx, the Rust routers and a plain aiohttp proxy, before the same mock engine.

    python tests/bench/gateway_side_by_side.py [--rounds 5] [--seconds 5] [--hold SECONDS]

Prints the table and writes `RESULTS.md` beside this file. On a busy machine trust the ratios of one run, and
of them CPU time: user and system time of a peer with all its processes. The Rust routers are installed by pip
into `.cache/bench` the first time; a peer that cannot be had, or does not start, is named as missing. All
traffic is loopback.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.gateway_peers import Command, compiled, free_port, gateway, interpreter, peers, version
from tests.support.mock_engine import MockEngine

HERE = Path(__file__).parent
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class NotServingError(Exception):
    """A peer does not answer."""


@dataclass(frozen=True)
class Load:
    """A load whose clients begin within `spread_ms`, and the engine behind it (times in microseconds)."""

    name: str
    mode: str
    connections: int
    first_us: int
    token_us: int
    spread_ms: int = 0


TOKENS = 64
PROMPT = 600
LOADS = (
    Load("json", "json", 32, 0, 0),
    Load("paced", "stream", 256, 20_000, 20_000),
    # As long as a stream, so that they end one after the other, too.
    Load("spread", "stream", 256, 20_000, 20_000, spread_ms=20 * TOKENS),
)


def family(pid: int) -> list[int]:
    """`pid` and its descendants."""
    found = [pid]
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += family(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a peer with all its processes."""
    ticks = 0
    for member in family(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def resident(pid: int) -> float:
    """Resident memory of a peer with all its processes, in MB."""
    pages = 0
    for member in family(pid):
        with suppress(OSError):
            pages += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return pages * PAGE / 1e6


def wait_for(port: int) -> None:
    """Until the peer answers a request."""
    body = json.dumps(
        {"model": "bench", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    ).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer k"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        with suppress(OSError), urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5):
            return
        time.sleep(0.1)
    raise NotServingError


@contextmanager
def serving(command: Command, upstream: int) -> Iterator[tuple[int, int]]:
    """A running peer: its port and its process id."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command(port, upstream, folder), stdout=log, stderr=log)
        try:
            wait_for(port)
            yield port, process.pid
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def client(binary: Path, port: int, load: Load, seconds: float) -> dict[str, Any]:
    """Run the load client."""
    command = [
        str(binary),
        str(port),
        str(load.connections),
        str(seconds),
        load.mode,
        str(TOKENS),
        str(PROMPT),
        str(load.spread_ms),
    ]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def measure(command: Command | None, load: Load, binary: Path, seconds: float) -> dict[str, float]:
    """One peer under one load; without a command, the engine itself."""
    with MockEngine(first_us=load.first_us, token_us=load.token_us, tokens=TOKENS) as engine:
        if command is None:
            return _figures(client(binary, engine.port, load, seconds), 0.0, 0.0)
        with serving(command, engine.port) as (port, pid):
            client(binary, port, load, 1.0)
            # What the warm-up left unfinished must not be counted.
            time.sleep(2)
            before = cpu_seconds(pid)
            result = client(binary, port, load, seconds)
            return _figures(result, cpu_seconds(pid) - before, resident(pid))


def _figures(result: Mapping[str, Any], cpu: float, memory: float) -> dict[str, float]:
    return {
        "req/s": result["good"] / result["seconds"],
        "bad": result["bad"],
        "cpu/request": 1e6 * cpu / max(1, result["good"]),
        "cpu/chunk": 1e6 * cpu / max(1, result["events"]),
        "ttft p50": result["ttft_ms"][0],
        "ttft p99": result["ttft_ms"][2],
        "whole p50": result["whole_ms"][0],
        "rss": memory,
    }


def hold(binary: Path, seconds: float, streams: int) -> dict[str, float]:
    """Many streams at once through the gateway: errors, and memory for each after the first ten seconds."""
    load = Load("hold", "stream", streams, 20_000, 500_000)
    with (
        MockEngine(first_us=load.first_us, token_us=load.token_us, tokens=TOKENS) as engine,
        serving(gateway, engine.port) as (port, pid),
    ):
        idle = resident(pid)
        command = [str(binary), str(port), str(streams), str(seconds), "stream", str(TOKENS), str(PROMPT)]
        running = subprocess.Popen(command, stdout=subprocess.PIPE)
        time.sleep(min(10.0, seconds / 2))
        early = resident(pid)
        out, _ = running.communicate()
        late = resident(pid)
        result = json.loads(out)
        return {
            "streams": streams,
            "seconds": seconds,
            "bad": result["bad"],
            "kb/stream": 1000 * (max(early, late) - idle) / streams,
            "growth_mb": late - early,
        }


def report(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]], missing: Sequence[str], held: Mapping[str, float]
) -> str:
    """The page."""
    where = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    lines = [
        "# The gateway beside its peers",
        "",
        f"Written by `tests/bench/gateway_side_by_side.py` on {datetime.now(UTC):%Y-%m-%d}: {where}.",
        "Medians of alternating runs. json: 32 connections in a closed loop; paced: 256 streams of 64 tokens",
        "at 50 tokens/s, the gateway asking for usage in every event and removing it; spread: the same",
        "streams, begun one after the other. Streams that begin together stay together the more, the quicker",
        "a peer takes their requests, and tokens that come together wake it once; spread apart, every peer",
        "has the same arrivals. CPU is user and system time of a peer with all its processes; TTFT is of the",
        "paced streams. The gateway and the plain proxy run on",
        f"{version(interpreter())}; the gateway's relay is {'compiled' if compiled() else 'interpreted'}.",
        "",
        "| peer | json CPU us/request | req/s | paced us/chunk | spread | TTFT p50 / p99 ms | bad | RSS MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, loads in rows.items():
        one, two, three = (loads[load.name] for load in LOADS)
        lines.append(
            f"| {name} | {one['cpu/request']:.1f} | {one['req/s']:.0f} | {two['cpu/chunk']:.2f} |"
            f" {three['cpu/chunk']:.2f} | {two['ttft p50']:.1f} / {two['ttft p99']:.1f} |"
            f" {one['bad'] + two['bad'] + three['bad']:.0f} | {two['rss']:.0f} |"
        )
    ours = rows["gateway"]
    heads = ("the gateway against", "CPU per request", "per paced chunk", "per spread chunk", "TTFT p99")
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, loads in rows.items():
        if name not in {"gateway", "engine alone"}:
            lines.append(
                f"| {name} | {ours['json']['cpu/request'] / loads['json']['cpu/request']:.2f} x |"
                f" {ours['paced']['cpu/chunk'] / loads['paced']['cpu/chunk']:.2f} x |"
                f" {ours['spread']['cpu/chunk'] / loads['spread']['cpu/chunk']:.2f} x |"
                f" {ours['paced']['ttft p99'] - loads['paced']['ttft p99']:+.1f} ms |"
            )
    if missing:
        lines += ["", f"Not here: {', '.join(missing)}."]
    streams, each = held["streams"], held["kb/stream"]
    lines += [
        "",
        f"{streams:.0f} streams at once for {held['seconds']:.0f} s: {held['bad']:.0f} failed, {each:.0f} KB",
        f"of memory each, {held['growth_mb']:+.1f} MB from the tenth second to the end.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--hold", type=float, default=60, help="seconds of the test with many streams")
    parser.add_argument("--streams", type=int, default=4000)
    options = parser.parse_args()
    found, missing = peers()
    commands: dict[str, Command | None] = {"engine alone": None, **found}
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        n: {load.name: [] for load in LOADS} for n in commands
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        binary = Path(name) / "load_client"
        source = str(HERE / "load_client.c")
        subprocess.run(["gcc", "-O2", "-std=gnu11", "-o", str(binary), source], check=True)
        for turn in range(options.rounds):
            for peer, command in list(commands.items()):
                try:
                    for load in LOADS:
                        got = measure(command, load, binary, options.seconds)
                        runs[peer][load.name].append(got)
                        shown = "  ".join(f"{key} {value:.1f}" for key, value in got.items())
                        print(f"round {turn + 1}  {peer:14s} {load.name:6s} {shown}", flush=True)
                except NotServingError:
                    print(f"round {turn + 1}  {peer:14s} does not serve", flush=True)
                    missing.append(peer)
                    del commands[peer], runs[peer]
        held = hold(binary, options.hold, options.streams)
    rows = {
        peer: {
            load: {key: statistics.median(run[key] for run in got) for key in got[0]}
            for load, got in loads.items()
        }
        for peer, loads in runs.items()
    }
    page = report(rows, missing, held)
    (HERE / "RESULTS.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
