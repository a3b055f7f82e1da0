"""The HTML page, opened in a real browser: plots are drawn, nothing fails, nothing is fetched."""

import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.integration.loadtest.conftest import Run
from tests.support.mock_engine import MockEngine

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-domain-reliability",
    "--no-pings",
    "--window-size=1400,2400",
    "--virtual-time-budget=2000",
]


@pytest.fixture
def page(run: Run, tmp_path: Path) -> Path:
    """The page of a short run with everything in it."""
    path = tmp_path / "report.html"
    with MockEngine(first_us=5000, token_us=1000, slots=16) as engine:
        load = ("--rate", "80", "--duration", "4s", "--objective", "ttft p95 < 60s", "--html", str(path))
        done = run(engine.url, *load, "--metrics", f"engine={engine.url}/metrics")
    assert done.status == 0, done.text
    return path


def test_the_page_refers_to_nothing_outside(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(?!data:,)(?:https?:)?//""", text) == []
    assert "@import" not in text
    assert len(page.read_bytes()) < 1_000_000


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here: install chromium to see the page opened")
def test_a_real_browser_draws_it_and_fetches_nothing(page: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    log, shot = tmp_path / "net.json", tmp_path / "page.png"
    flags = [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"]
    drawn = subprocess.run(
        [CHROMIUM, *flags, f"--log-net-log={log}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    subprocess.run(
        [CHROMIUM, *flags, f"--screenshot={shot}", page.as_uri()],
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert drawn.stdout.count("<polyline") >= 12
    assert drawn.stdout.count("<svg") >= 9
    assert "CONSOLE" not in drawn.stderr, drawn.stderr
    assert requested(log) <= {page.as_uri()}
    colours = distinct_pixels(shot)
    assert colours > 20, "the plots' colours are on the picture"


def requested(log: Path) -> set[str]:
    """URLs of the requests that the page made, from Chromium's own network log."""
    text = log.read_text()
    try:
        events = json.loads(text)
    except json.JSONDecodeError:  # the log of a browser that ends at once may lack its last brackets
        events = json.loads(text.rstrip().rstrip(",") + "]}")
    kinds = events["constants"]["logEventTypes"]
    start = {kinds[name] for name in ("URL_REQUEST_START_JOB",) if name in kinds}
    urls = {
        e["params"]["url"] for e in events["events"] if e["type"] in start and "url" in e.get("params", {})
    }
    own = re.compile(r"^https?://([a-z0-9-]+\.)*(google|gstatic|googleapis|gvt1)\.")
    return {url for url in urls if not own.match(url) and not url.startswith(("chrome", "data:"))}


def distinct_pixels(shot: Path) -> int:
    """How many different byte triples the decompressed picture holds, coarsely."""
    data, at, packed = shot.read_bytes(), 8, b""
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IDAT":
            packed += data[at + 8 : at + 8 + size]
        at += 12 + size
    raw = zlib.decompress(packed)
    return len({raw[i : i + 3] for i in range(0, len(raw), 97)})
