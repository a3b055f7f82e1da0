"""``llmctl status`` of a checkout."""

import os
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from daemons.llmctl.__main__ import main
from daemons.llmctl.up import instance
from daemons.llmctl.up.layout import Layout


class _Starting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"error": {"message": "No engine is ready (e: starting).", "code": "no_engine"}}'
        self.send_response(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def starting() -> Iterator[str]:
    """A gateway without a ready engine."""
    with HTTPServer(("127.0.0.1", 0), _Starting) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sockets would lie."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_looking_writes_nothing(tmp_path: Path, temporary: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--state", str(tmp_path / "nope")]) == 3
    assert main(["stop", "--state", str(tmp_path / "nope")]) == 0
    assert "not running" in capfd.readouterr().out
    assert not (tmp_path / "nope").exists()
    assert not list(temporary.iterdir())


def test_what_up_keeps_is_for_its_owner_only(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    assert not layout.make()
    folders = [layout.state, layout.sockets, *(path for path in layout.state.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    layout.state.chmod(0o755)
    assert layout.make()
    assert layout.state.stat().st_mode & 0o777 == 0o700
    layout.state.chmod(0o1777)
    assert not layout.make()


def test_an_engine_that_starts_is_not_called_running(
    tmp_path: Path, starting: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = Layout(tmp_path / "state").run
    with instance.claim(run, "engine"), instance.claim(run, "gateway"):
        instance.write_url(run, starting)
        assert main(["status", "--state", str(tmp_path / "state")]) == 1
    engine, gateway = capfd.readouterr().out.splitlines()[1:3]
    assert engine.rstrip().split(maxsplit=2)[1:] == [str(os.getpid()), "started, not ready"]
    assert gateway.rstrip().endswith(f"not ready at {starting}: No engine is ready (e: starting).")
