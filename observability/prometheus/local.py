"""Prometheus on what `make up` started: ``python -m observability.prometheus.local``.

Runs the distribution's Prometheus, and its node exporter where it is installed, on loopback until Ctrl-C.
"""

import argparse
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from observability.prometheus.render import RULES

ROOT = RULES.parents[2]
NODE_PORT = 9100

Target = tuple[str, Mapping[str, str]]
"""Address, and labels."""


class NotRunning(Exception):
    """There is nothing to look at."""


def config(jobs: Mapping[str, Sequence[Target]], rules: Path, interval: str) -> dict[str, Any]:
    """The settings of a Prometheus, as the role prometheus writes them."""
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [f"{rules}/*.yml"],
        "scrape_configs": [
            {
                "job_name": name,
                "static_configs": [{"targets": [at], "labels": dict(labels)} for at, labels in targets],
                "metric_relabel_configs": [
                    {"source_labels": ["__name__"], "regex": ".+_created", "action": "drop"}
                ],
            }
            for name, targets in jobs.items()
            if targets
        ],
    }


def jobs_of(state: Path) -> dict[str, list[Target]]:
    """What the stack whose state lies in `state` offers.

    Raises:
        NotRunning: it was never started, or on ports that its settings do not name.
    """
    host = {"host": socket.gethostname()}
    engine = state / "engines" / "local.yaml"
    places = (
        ("llm-gateway", state / "gateway.yaml", "metrics", host),
        ("llm-gpu-exporter", state / "gpu-exporter.yaml", "listen", host),
        ("llm-engine", engine, "metrics", {**host, "engine": engine.stem}),
    )
    jobs: dict[str, list[Target]] = {}
    for job, path, key, labels in places:
        if not path.is_file():
            raise NotRunning(f"{path} is not there: run `make up` first, in another terminal")
        port = yaml.safe_load(path.read_text(encoding="utf-8"))[key]["port"]
        if not port:
            raise NotRunning(
                f"{path} names no port, since `make up` ran with PORT=0: run it with another one"
            )
        jobs[job] = [(f"127.0.0.1:{port}", labels)]
    return jobs


@contextlib.contextmanager
def node_exporter(port: int, *options: str) -> Iterator[None]:
    """The node exporter within the context, where it is installed."""
    program = shutil.which("prometheus-node-exporter")
    if program is None:
        yield
        return
    command = [program, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error", *options]
    # It complains at every scrape of what a machine lacks; one that does not run is a target that is down.
    with running(command, stderr=subprocess.DEVNULL):
        yield


@contextlib.contextmanager
def running(command: Sequence[str | Path], **more: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A process within the context."""
    process = subprocess.Popen(command, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _run(state: Path, port: int) -> int:
    jobs, host = jobs_of(state), {"host": socket.gethostname()}
    jobs["prometheus"] = [(f"127.0.0.1:{port}", host)]
    if shutil.which("prometheus-node-exporter"):
        jobs["node"] = [(f"127.0.0.1:{NODE_PORT}", host)]
    file = state / "prometheus.yml"
    file.write_text(yaml.safe_dump(config(jobs, RULES, "5s"), sort_keys=False), encoding="utf-8")
    command = [
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={state / 'prometheus'}",
        "--storage.tsdb.retention.size=1GB",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with node_exporter(NODE_PORT), running(command) as process:
        # Ctrl-C reaches the whole group: both end by themselves, and are waited for.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        print(f"Prometheus: http://127.0.0.1:{port}/alerts (rules, alerts, graphs). Ctrl-C stops it.")
        return process.wait()


def main(argv: list[str] | None = None) -> int:
    """Run Prometheus until it is told to stop; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m observability.prometheus.local", description="Prometheus on what `make up` started."
    )
    parser.add_argument(
        "--state", type=Path, default=ROOT / ".llm", help="state of the stack (default: .llm)"
    )
    parser.add_argument("--port", type=int, default=9090, help="port of Prometheus (default: 9090)")
    args = parser.parse_args(argv)
    if shutil.which("prometheus") is None:
        print("make monitoring: needs Prometheus: apt-get install prometheus", file=sys.stderr)
        return 1
    try:
        return _run(args.state, args.port)
    except NotRunning as error:
        print(f"make monitoring: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
