"""How many series a large host has, and what evaluating every rule on them costs."""

import http.server
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from daemons.gateway.metrics import Metrics
from daemons.gateway.settings import PRIORITIES
from daemons.gateway.tenants.bounds import Bounds
from daemons.gateway.tenants.keys import KeyRing, KeySettings
from daemons.gateway.tenants.ledger.ledger import Ledger
from daemons.gateway.tenants.limiter import Limiter
from daemons.gateway.tenants.meters import TenantsCollector
from daemons.gateway.tenants.reserve import Limits
from observability.prometheus.client import Prometheus
from observability.prometheus.local import config, running
from tests.integration.engine.conftest import free_port, wait_for
from tests.integration.observability.lab import HOST, hasty_rules, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {missing()}: apt-get install {missing()}")

KEYS, ENGINES, GPUS = 200, 8, 8
MOST_SERIES = 30_000
MOST_SECONDS = 0.1
SAMPLES_SECONDS = 10.0
DURATIONS = "min_over_time((prometheus_rule_group_last_duration_seconds > 0)[2m:1s])"
"""Of each group what its fastest evaluation took: the machine that runs the tests does more than that."""

ROOT = Path(__file__).parents[3]
SCRAPES = ROOT / "tests/unit/observability/scrapes"
OUTCOMES = ("ok", "client_gone", "rate_limit_exceeded", "queue_timeout", "invalid_request", "engine_lost")
ENDPOINTS = ("chat", "completions", "embeddings")


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
            metrics.count_tokens(key, f"model-{model}", 10, 5, 20)
    for model in range(ENGINES):
        for endpoint in ENDPOINTS:
            for priority in PRIORITIES:
                metrics.series(f"model-{model}", endpoint, priority).ttft.note(0.1)
                for outcome in OUTCOMES:
                    metrics.requests.add((f"model-{model}", endpoint, priority, outcome))
    registry = CollectorRegistry()
    registry.register(metrics)
    limits = Limits(limiter, metrics.rate_limited)
    ledger = Ledger(Path("/nonexistent/ledger.db"), 1)
    registry.register(TenantsCollector(ring, limiter, ledger, limits, None))
    own = "".join(
        line + "\n"
        for line in (SCRAPES / "llm-gateway.txt").read_text().splitlines()
        if re.match(r"(python|process|llm_build|llm_gateway_(engine|queue_depth))", line)
    )
    return generate_latest(registry).decode() + own


def gpu_page() -> str:
    """Eight H100."""
    text = (ROOT / "tests/integration/gpu_exporter/golden/h100.prom").read_text()
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
    supervisor = (SCRAPES / "llm-engine-llama-8b-gpu0.txt").read_text()
    own = "".join(line + "\n" for line in supervisor.splitlines() if re.match(r"llm_|python_|process_", line))
    text = (SCRAPES / "vllm-0.32.txt").read_text()
    return own + re.sub(r'model_name="[^"]*"', f'model_name="model-{number}"', text)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the pages of a large host, every second."""
    folder = tmp_path_factory.mktemp("large")
    pages = {"/gateway": gateway_page(), "/gpus": gpu_page(), "/node": (SCRAPES / "node.txt").read_text()}
    pages |= {f"/engine{number}": engine_page(number) for number in range(ENGINES)}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = pages[self.path].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ExitStack() as stack:
        server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        at = f"127.0.0.1:{server.server_port}"
        port = free_port()
        jobs = {"llm-gateway": "/gateway", "llm-gpu-exporter": "/gpus", "node": "/node"}
        jobs |= {f"llm-engine-{number}": f"/engine{number}" for number in range(ENGINES)}
        settings = config({job: [(at, {"host": HOST})] for job in jobs}, hasty_rules(folder), "1s")
        for scrape in settings["scrape_configs"]:
            scrape["metrics_path"] = jobs[scrape["job_name"]]
            if scrape["job_name"].startswith("llm-engine"):
                scrape["static_configs"][0]["labels"]["engine"] = scrape["job_name"]
        settings["scrape_configs"].append(
            {"job_name": "prometheus", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        )
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
        ]
        stack.enter_context(running([*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]))
        made = Prometheus(f"http://127.0.0.1:{port}")
        wait_for(lambda: _scraped(made, len(jobs)), 60)
        wait_for(lambda: made.instant("slo:sli_events:rate3d", time.time()), 120, 0.5)
        time.sleep(SAMPLES_SECONDS)
        yield made


def _scraped(prometheus: Prometheus, targets: int) -> bool:
    try:
        return len(prometheus.instant('up{job!="prometheus"} == 1', time.time())) == targets
    except OSError:
        return False


def _value(prometheus: Prometheus, expr: str) -> float:
    (one,) = prometheus.instant(expr, time.time())
    return one.points[-1][1]


def test_a_large_host_has_fewer_series_than_promised(large: Prometheus) -> None:
    series = _value(large, "sum(scrape_samples_post_metric_relabeling)")
    head = _value(large, "prometheus_tsdb_head_series")
    print(f"series of the host's targets {series:.0f}, of Prometheus in all {head:.0f}")
    assert series > 10_000
    assert head < MOST_SERIES


def test_every_rule_is_evaluated_in_time(large: Prometheus) -> None:
    found = large.instant(DURATIONS, time.time())
    seconds = {one.labels["rule_group"].partition(";")[2]: one.points[-1][1] for one in found}
    print({name: f"{value * 1000:.1f} ms" for name, value in seconds.items()})
    assert len(seconds) >= 7
    assert sum(seconds.values()) < MOST_SECONDS
