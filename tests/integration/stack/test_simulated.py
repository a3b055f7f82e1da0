"""`make up ENGINE=simulator`: bad input, the habits of earlier releases, a clean end."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from daemons.gateway.tenants.key_files import hash_of
from daemons.llmctl.up.processes import descendants_of
from daemons.runtime.sockets import Address, listen_tcp, port_of
from tests.integration.stack.conftest import ROOT, Up, end, start_up

CHAT = {"model": "llama-7b", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}


def _send(
    up: Up, path: str, body: bytes | None, method: str = "POST", headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    request = urllib.request.Request(
        f"{up.url}{path}",
        data=body,
        method=method,
        headers={
            "Authorization": f"Bearer {up.key}",
            "Content-Type": "application/json",
            **(headers or {}),
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)


@pytest.mark.parametrize(
    ("path", "method", "body", "headers", "status"),
    [
        (
            "/v1/chat/completions",
            "POST",
            json.dumps(CHAT).encode(),
            {"Authorization": "Bearer nonsense"},
            401,
        ),
        ("/v1/chat/completions", "POST", json.dumps(CHAT).encode(), {"Authorization": ""}, 401),
        ("/v1/chat/completions", "POST", b'{"model": "llama-7b", ', {}, 400),
        ("/v1/chat/completions", "POST", b"[1]", {}, 400),
        ("/v1/chat/completions", "POST", b'{"model":"gpt-9","messages":[]}', {}, 404),
        ("/v1/chat/completions", "GET", None, {}, 405),
        ("/v1/no/such/path", "POST", b"{}", {}, 404),
        ("/v1/chat/completions", "POST", b'"' + b"x" * (21 * 1024 * 1024) + b'"', {}, 413),
    ],
    ids=["wrong-key", "no-key", "cut-json", "no-object", "unknown-model", "method", "path", "too-large"],
)
def test_bad_input_is_a_clear_error_in_the_openai_form(
    simulated: Up, path: str, method: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    try:
        got, answer, _ = _send(simulated, path, body, method, headers)
    except (BrokenPipeError, ConnectionResetError):
        pytest.fail("the answer was lost because the connection was closed under the request body")
    assert got == status
    error = answer["error"]
    assert error["message"]
    assert error["type"]
    assert isinstance(error["code"], str)


def test_a_body_of_several_megabytes_is_taken(simulated: Up) -> None:
    big = json.dumps(CHAT).encode() + b" " * (2 * 1024 * 1024)
    status, answer, _ = _send(simulated, "/v1/chat/completions", big)
    assert status == 200, answer


def test_both_key_headers_are_accepted(simulated: Up) -> None:
    for headers in ({"Authorization": "Bearer dev-key-1"}, {"Authorization": "", "X-API-Key": "dev-key-1"}):
        status, answer, _ = _send(
            simulated, "/v1/chat/completions", json.dumps(CHAT).encode(), "POST", headers
        )
        assert status == 200, answer
        assert answer["choices"][0]["message"]["content"]


def test_the_state_is_private(simulated: Up) -> None:
    assert (simulated.state / "key").stat().st_mode & 0o777 == 0o600
    for path in simulated.state.rglob("*.log"):
        text = path.read_text()
        assert simulated.key not in text
        assert "dev-key-1" not in text


def test_keys_that_the_operator_changed_stay_so_and_the_banner_says_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "keys.d").mkdir(parents=True)
    (state / "key").write_text("sk-of-the-first-start\n")
    local = {"name": "local", "secrets": [hash_of("sk-of-the-first-start")], "disabled": True}
    (state / "keys.d" / "local.yaml").write_text(json.dumps(local))
    up = start_up(tmp_path, "--engine", "simulator", state=state)
    try:
        up.wait_for(r"^  Key +sk-of-the-first-start  \(refused: see `llmctl keys list local`\)$")
        up.wait_for("Ctrl-C stops everything")
        assert "dev-key-1" not in up.text
        assert "llm-gateway: up" in up.text
        for key in ("sk-of-the-first-start", "dev-key-1"):
            headers = {"Authorization": f"Bearer {key}"}
            request = urllib.request.Request(f"{up.url}/v1/models", headers=headers)
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(request, timeout=60)
    finally:
        end(up)


def test_a_second_start_of_the_same_checkout_is_refused_in_one_line(simulated: Up) -> None:
    command = [sys.executable, "-m", "daemons.llmctl", "up", "--port", "0", "--state", str(simulated.state)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "already running" in done.stderr
    assert "make stop" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with listen_tcp(Address(port=0)) as sock:
        up = start_up(tmp_path, "--engine", "simulator", "--port", str(port_of(sock)))
        assert up.process.wait(timeout=60) == 1
        assert f"127.0.0.1:{port_of(sock)} is already in use" in up.text
    assert "Traceback" not in up.text


def test_a_model_folder_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    up = start_up(tmp_path, "--model", "./no/such/folder")
    assert up.process.wait(timeout=60) == 78
    assert "no model there" in up.text
    assert "Traceback" not in up.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "99999"), "'99999' is no port"),
        (("--engine", "nonsense"), "choose from"),
        (("--engine", "simulator", "--model", "./nowhere"), "MODEL=./nowhere: no model there"),
    ],
)
def test_a_wrong_word_is_answered_at_once(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    up = start_up(tmp_path, *arguments)
    assert up.process.wait(timeout=60) in {2, 78}
    assert words in up.text
    assert "Traceback" not in up.text
    assert "llm-gateway" not in up.text


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a full disk")
    folder = tmp_path / "full"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    try:
        (folder / "filler").write_bytes(b"")
        with (folder / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        command = [sys.executable, "-m", "daemons.llmctl", "up", "--port", "0", "--engine", "simulator"]
        done = subprocess.run(
            [*command, "--state", str(folder / "state")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    assert done.returncode != 0
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gateway_without_any_engine_says_what_to_start(tmp_path: Path) -> None:
    up = start_up(tmp_path, "gateway")
    assert up.process.wait(timeout=60) == 1
    assert "`make vllm` first" in up.text
    assert "vLLM for" not in up.text


def test_parts_run_by_themselves(tmp_path: Path) -> None:
    engine = start_up(tmp_path / "engine", "engine", "--engine", "simulator", state=tmp_path / "state")
    engine.wait_for("Running. Ctrl-C stops it.")
    written = (tmp_path / "state" / "engines" / "local.yaml").read_text()
    gateway = start_up(tmp_path / "gateway", "gateway", state=tmp_path / "state")
    exporter = start_up(tmp_path / "exporter", "gpu-exporter", state=tmp_path / "state")
    try:
        exporter.wait_for("Running. Ctrl-C stops it.")
        assert "simulated" in gateway.wait_for(r"^  Model +(\S+)")[1]
        with urllib.request.urlopen(f"{gateway.url}/ready", timeout=60) as answer:
            assert answer.status == 200
        assert "vLLM for" not in gateway.text + exporter.text
        assert (tmp_path / "state" / "engines" / "local.yaml").read_text() == written
    finally:
        for up in (gateway, exporter, engine):
            end(up)


def test_a_closed_terminal_ends_everything(tmp_path: Path) -> None:
    up = start_up(tmp_path, "--engine", "simulator")
    assert up.url
    watched = [os.pidfd_open(pid) for pid in descendants_of(up.process.pid)]
    up.process.send_signal(signal.SIGHUP)
    assert up.process.wait(timeout=60) == 0
    _assert_ended(watched)


def test_ctrl_c_ends_everything_even_when_a_child_hangs(tmp_path: Path) -> None:
    up = start_up(tmp_path, "--engine", "simulator")
    assert up.url
    below = descendants_of(up.process.pid)
    simulator = next(p for p in below if b"daemons.simulator" in Path(f"/proc/{p}/cmdline").read_bytes())
    watched = [os.pidfd_open(pid) for pid in below]
    os.kill(simulator, signal.SIGSTOP)
    assert up.interrupt() == 0
    _assert_ended(watched)


def test_a_killed_manager_takes_everything_along(tmp_path: Path) -> None:
    up = start_up(tmp_path, "--engine", "simulator")
    assert up.url
    below = descendants_of(up.process.pid)
    watched = [os.pidfd_open(pid) for pid in below]
    up.process.kill()
    up.process.wait()
    _assert_ended(watched)


def _assert_ended(pidfds: list[int]) -> None:
    for fd in pidfds:
        assert select.select([fd], [], [], 60)[0], "a process outlived its manager"
        os.close(fd)


_ORIGINAL_CURL = """
curl -sS http://localhost:8080/v1/chat/completions \
  -H "Authorization: Bearer dev-key-1" \
  -H "Content-Type: application/json" \
  -d '{"model": "llama-7b", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16}'
"""
_ORIGINAL_PYTHON = """
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8080/v1", api_key="dev-key-1")
response = client.chat.completions.create(
    model="llama-7b",
    messages=[{"role": "user", "content": "Hello!"}],
    max_tokens=16,
)
print(response.choices[0].message.content)
for chunk in client.chat.completions.create(
    model="llama-7b", messages=[{"role": "user", "content": "Hello!"}], max_tokens=16, stream=True
):
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="")
"""


def test_the_examples_of_earlier_releases_work_unchanged(tmp_path: Path) -> None:
    """In a network namespace of its own, where port 8080 is free whatever this machine runs."""
    if not shutil.which("curl") or subprocess.run(["unshare", "-rn", "true"], check=False).returncode:
        pytest.skip("needs curl and network namespaces")
    (tmp_path / "example.sh").write_text(_ORIGINAL_CURL)
    (tmp_path / "example.py").write_text(_ORIGINAL_PYTHON)
    script = f"""
    ip link set lo up
    {sys.executable} -m daemons.llmctl up --engine simulator --state {tmp_path}/state \
        > {tmp_path}/up.log 2>&1 &
    up=$!
    tries=0
    until grep -q 'Ctrl-C stops everything' {tmp_path}/up.log; do
        kill -0 $up && [ $tries -lt 600 ] || {{ cat {tmp_path}/up.log; exit 1; }}
        tries=$((tries + 1)); sleep 0.2
    done
    sh {tmp_path}/example.sh && {sys.executable} {tmp_path}/example.py
    status=$?
    {sys.executable} -m daemons.llmctl stop --state {tmp_path}/state
    wait $up
    exit $status
    """
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"choices"' in done.stdout
    assert "stopped: " in done.stdout
