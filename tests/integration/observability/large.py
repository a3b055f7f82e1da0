"""What the daemons of a large host answer to a scrape: 200 keys, 8 engines, 8 GPUs."""

import contextlib
import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from daemons.gateway.metrics import Metrics
from daemons.gateway.settings import PRIORITIES
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.keys import KeySettings
from daemons.gateway.tenants.ledger.ledger import Ledger
from daemons.gateway.tenants.limiter import Limiter
from daemons.gateway.tenants.meters import TenantsCollector
from daemons.gateway.tenants.reserve import Limits
from daemons.gateway.tenants.ring import KeyRing
from daemons.runtime.control import EngineState

KEYS, ENGINES, GPUS = 200, 8, 8

_ROOT = Path(__file__).parents[3]
_SCRAPES = _ROOT / "tests/unit/observability/scrapes"
_OUTCOMES = ("ok", "client_gone", "rate_limit_exceeded", "queue_timeout", "invalid_request", "engine_lost")
_ENDPOINTS = ("chat", "completions", "embeddings")


@dataclass(frozen=True, slots=True)
class Page:
    """What one target answers, and the labels that Prometheus adds."""

    job: str
    path: str
    text: str
    labels: dict[str, str]


def pages() -> list[Page]:
    """The page of each target."""
    found = [
        Page("llm-gateway", "/gateway", gateway_page(), {}),
        Page("llm-gpu-exporter", "/gpus", gpu_page(), {}),
        Page("node", "/node", (_SCRAPES / "node.txt").read_text(), {}),
    ]
    for number in range(ENGINES):
        labels = {"engine": f"engine-{number}"}
        found.append(Page("llm-engine", f"/engine{number}", engine_page(number), labels))
    return found


def targets(address: str, host: str) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """The targets behind `address` by job, as a scrape configuration has them."""
    jobs: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for page in pages():
        labels = {"host": host, "__metrics_path__": page.path, **page.labels}
        jobs.setdefault(page.job, []).append((address, labels))
    return jobs


@contextlib.contextmanager
def serving(text_of: Callable[[str], str]) -> Iterator[str]:
    """An HTTP server that answers a path with `text_of` it; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = text_of(self.path).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def gateway_page() -> str:
    """A gateway whose 200 keys have all used all eight models, and have every limit."""
    bounds = Bounds(
        requests_per_minute=9, tokens_per_minute=9, concurrency=9, tokens_per_day=9, tokens_per_month=9
    )
    keys = [f"team-{number}" for number in range(KEYS)]
    ring, limiter, metrics = KeyRing(), Limiter(Bounds(), time.monotonic, time.time), Metrics()
    ring.replace(KeySettings(name=key, secrets=(f"sha256:{'0' * 64}",), limits=bounds) for key in keys)
    for key in keys:
        limiter.reserve(key, bounds, "", 1)
        metrics.rate_limited.add((key, "key_requests"))
        for model in range(ENGINES):
            for kind in ("prompt", "cached", "completion"):
                metrics.tokens.add((key, f"model-{model}", kind), 10)
    for model in range(ENGINES):
        for endpoint in _ENDPOINTS:
            for priority in PRIORITIES:
                metrics.series(f"model-{model}", endpoint, priority).ttft.note(0.1)
                for outcome in _OUTCOMES:
                    metrics.requests.add((f"model-{model}", endpoint, priority, outcome))
    registry = CollectorRegistry()
    registry.register(metrics)
    limits = Limits(limiter, metrics.rate_limited)
    ledger = Ledger(Path("/nonexistent/ledger.db"), 1)
    registry.register(TenantsCollector(ring, limiter, ledger, limits, None))
    recorded = (_SCRAPES / "llm-gateway.txt").read_text().splitlines()
    own = [line for line in recorded if re.match(r"python_|process_|llm_build_", line)]
    for number in range(ENGINES):
        own += [
            f'llm_gateway_queue_depth{{model="model-{number}",class="{priority}"}} 0'
            for priority in PRIORITIES
        ]
        own += [f'llm_gateway_engine_in_flight{{engine="engine-{number}"}} 0']
        own += [
            f'llm_gateway_engine_state{{engine="engine-{number}",state="{state}"}} {float(state == "ready")}'
            for state in EngineState
        ]
    return generate_latest(registry).decode() + "\n".join(own) + "\n"


def gpu_page() -> str:
    """Eight H100."""
    text = (_ROOT / "tests/integration/gpu_exporter/golden/h100.prom").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    page = [line for line in lines if "uuid=" not in line]
    for gpu in range(GPUS):
        own = [line for line in lines if "uuid=" in line]
        page += [
            line.replace('gpu="0"', f'gpu="{gpu}"').replace("-000000000000", f"-{gpu:012d}") for line in own
        ]
    return "\n".join(page) + "\n"


def engine_page(number: int) -> str:
    """The real vLLM's page, and its supervisor's."""
    supervisor = (_SCRAPES / "llm-engine-llama-8b-gpu0.txt").read_text()
    own = "".join(line + "\n" for line in supervisor.splitlines() if re.match(r"llm_|python_|process_", line))
    text = (_SCRAPES / "vllm-0.32.txt").read_text()
    return own + re.sub(r'model_name="[^"]*"', f'model_name="model-{number}"', text)
