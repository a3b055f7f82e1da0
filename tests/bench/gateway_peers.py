"""The gateway's peers and how each is started; what a start needs is installed into `.cache/bench`, once."""

import hashlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from zipfile import ZipFile

HERE = Path(__file__).parent
REPO = HERE.parents[1]
CACHE = REPO / ".cache" / "bench"
SYSTEM_PYTHON = Path("/usr/bin/python3")
LIMITS = "limits: {requests_per_minute: 100000000, tokens_per_minute: 10000000000, concurrency: 100000}\n"
"""Limits that do not bind, so that they are counted all the same."""
Command = Callable[[int, int, Path], list[str]]
"""Makes the command of a peer from its port, its engine's port and a folder of its own."""


def nginx(port: int, upstream: int, folder: Path) -> list[str]:
    """nginx without buffering, one process."""
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = f"""daemon off; master_process off; pid {folder}/pid; error_log stderr crit;
worker_rlimit_nofile 16384; events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 100000000; client_body_buffer_size 1m; {temporary}
upstream engine {{ server 127.0.0.1:{upstream}; keepalive 1024; }}
server {{ listen 127.0.0.1:{port} backlog=4096;
location / {{ proxy_pass http://engine; proxy_http_version 1.1;
proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 600s; }} }} }}"""
    (folder / "nginx.conf").write_text(config)
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def gateway(port: int, upstream: int, folder: Path) -> list[str]:
    """Ours, with everything on: keys, limits, ledger, policy, usage, metrics, a log line for each request."""
    (folder / "keys.d").mkdir()
    digest = hashlib.sha256(b"k").hexdigest()
    (folder / "keys.d" / "bench.yaml").write_text(f'name: bench\nsecrets: ["sha256:{digest}"]\n{LIMITS}')
    engine = f'{{name: e, url: "http://127.0.0.1:{upstream}", models: [bench], max_in_flight: 10000}}'
    config = f"listen: {{port: {port}}}\nmetrics: {{port: 0}}\nengines: [{engine}]\n"
    (folder / "gateway.yaml").write_text(config)
    return [*released(), "-m", "daemons.gateway", "--config", str(folder / "gateway.yaml")]


def plain(port: int, upstream: int, _: Path) -> list[str]:
    """The obvious proxy."""
    return [str(interpreter()), str(HERE / "plain_aiohttp.py"), str(port), str(upstream)]


def router(folder: Path, module: list[str]) -> Command:
    """One of the Rust routers, from its environment."""

    def command(port: int, upstream: int, _: Path) -> list[str]:
        options = [
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--policy",
            "round_robin",
            "--log-level",
            "error",
        ]
        options += ["--worker-urls", f"http://127.0.0.1:{upstream}", "--max-concurrent-requests", "100000"]
        return [str(folder / "bin" / module[0]), *module[1:], *options, "--prometheus-port", str(free_port())]

    return command


def installed(name: str) -> Path:
    """The virtual environment of the package `name`, made the first time."""
    home = CACHE / name
    if not (home / ".complete").exists():
        print(f"installing {name} into {home}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(home / "bin" / "pip"), "install", "--quiet", name], check=True)
        (home / ".complete").touch()
    return home


@cache
def interpreter() -> Path:
    """A Python with the daemons' dependencies: the system's, where it will do, made ready the first time.

    A deployment runs an optimised build of CPython, as distributions have them; one that somebody compiled
    without profile-guided optimisation may need a quarter more CPU for a request.
    """
    if not SYSTEM_PYTHON.exists() or not _runs(
        SYSTEM_PYTHON, "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))"
    ):
        return Path(sys.executable)
    home, locks = CACHE / "daemons", HERE.parents[1] / "requirements"
    lock = (locks / "daemons.txt").read_bytes()
    mark, python = home / ".complete", home / "bin" / "python"
    if not mark.exists() or mark.read_bytes() != lock:
        print(f"installing the daemons' dependencies into {home}", flush=True)
        subprocess.run([str(SYSTEM_PYTHON), "-m", "venv", "--clear", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*install, "-r", str(locks / "build.txt")], check=True)
        subprocess.run([*install, "--no-build-isolation", "-r", str(locks / "daemons.txt")], check=True)
        mark.write_bytes(lock)
    return python


@cache
def released() -> list[str]:
    """The start of a command that runs the daemons as a release does: from what ``make wheel`` builds."""
    home = CACHE / "release"
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run(["make", "--silent", "wheel"], cwd=REPO, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (REPO / "dist").glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(home)
    # Workers start as modules, too; none may find the sources in the working folder.
    return ["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={home}", str(interpreter())]


def compiled() -> bool:
    """Whether the gateway that is measured is compiled."""
    code = (
        "import sys; from daemons.gateway.relay import stream; sys.exit(not stream.__file__.endswith('.so'))"
    )
    return subprocess.run([*released(), "-c", code], check=False).returncode == 0


def version(python: Path) -> str:
    """Which Python that is."""
    code = "import platform; print(platform.python_implementation(), platform.python_version())"
    ran = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    whose = "the one of .venv" if str(python) == sys.executable else "the system's"
    return f"{ran.stdout.strip()}, {whose}"


def _runs(python: Path, code: str) -> bool:
    return subprocess.run([str(python), "-c", code], check=False, capture_output=True).returncode == 0


def peers() -> tuple[dict[str, Command], list[str]]:
    """The peers that are here, and the names of those that are not."""
    found: dict[str, Command] = {"gateway": gateway}
    missing = []
    if shutil.which("nginx"):
        found["nginx"] = nginx
    else:
        missing.append("nginx")
    for name, module in (
        ("vllm-router", ["vllm-router"]),
        ("sglang-router", ["python", "-m", "sglang_router.launch_router"]),
    ):
        try:
            found[name] = router(installed(name), module)
        except subprocess.CalledProcessError:
            missing.append(name)
    found["plain aiohttp"] = plain
    return found, missing


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port
