"""A stand-in for the ``vllm`` program: same flags, log lines and processes, no model.

What it does is read from ``fake.json`` in the model's folder: ``{"mode": …}``. Run as ``python fake_vllm.py
serve MODEL --uds PATH …``. Like vLLM it has a grandchild that does the work
(``core.pid`` in the model's folder).
"""

import json
import os
import signal
import socketserver
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

START = """\
(APIServer pid=1) INFO 11-23 09:46:20 [utils.py:299] non-default args: {}
(EngineCore pid=2) INFO 11-23 09:46:30 [core.py:134] Initializing a V1 LLM engine (v0.32.0) with config: x
(Worker pid=3) INFO 11-23 09:46:43 [cpu_model_runner.py:68] Starting to load model x...
\rLoading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00, 1.0it/s]
(Worker pid=3) INFO 11-23 09:46:43 [default_loader.py:502] Loading weights took 0.44 seconds
(EngineCore pid=2) INFO 11-23 09:46:45 [kv_cache_utils.py:2328] CPU KV cache size: 2,816 tokens, \
Maximum concurrency for 1,024 tokens per request: 2.75x
(EngineCore pid=2) INFO 11-23 09:46:45 [core.py:403] init engine (profile, create kv cache) took 1 s
(APIServer pid=1) INFO 11-23 09:46:46 [entry.py:140] Starting vLLM server on unix:x
"""
REFUSALS = {
    "bad-flag": (2, "vllm: error: unrecognized arguments: --swap-space 4"),
    "no-space": (1, "OSError: [Errno 28] No space left on device"),
    "gated": (
        1,
        "huggingface_hub.errors.GatedRepoError: Access to model x/y is restricted",
    ),
    "out-of-memory": (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    "memory-taken": (
        1,
        "ValueError: Free memory on device cuda:0 (3.1/47.5 GiB) on startup is less than desired GPU memory",
    ),
    "port-taken": (
        1,
        "OSError: [Errno 98] error while attempting to bind on address: address already in use",
    ),
    "unknown": (1, "RuntimeError: the flux capacitor is empty"),
}


class Engine(BaseHTTPRequestHandler):
    """One connection; the state lies in the class."""

    folder = Path()
    tokens = 0
    frozen = False
    wedged = False

    def address_string(self) -> str:
        """A unix socket has no address."""
        return "-"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silent."""

    def _answer(self, status: int, body: str, kind: str = "application/json") -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """Health and metrics: both keep answering while the engine hangs."""
        if self.path != "/metrics":
            return self._answer(200, "")
        running = int(Engine.frozen and not Engine.wedged)
        lines = [
            f'vllm:generation_tokens_total{{engine="0",model_name="m"}} {Engine.tokens}.0',
            f'vllm:num_requests_running{{engine="0",model_name="m"}} {running}.0',
            'vllm:num_requests_waiting{engine="0",model_name="m"} 0.0',
            'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25',
            "process_resident_memory_bytes 5.0",
        ]
        return self._answer(200, "\n".join(lines) + "\n", "text/plain")

    def do_POST(self) -> None:
        """Completions, and ``/fake/WHAT`` to make it fail."""
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path == "/fake/hang":
            Engine.frozen = True
        elif self.path == "/fake/wedge":
            # Hangs, and says that it runs nothing.
            Engine.frozen = Engine.wedged = True
        elif self.path == "/fake/exit":
            self._answer(200, "{}")
            self.wfile.flush()
            os._exit(0)
        elif Engine.frozen:
            time.sleep(3600)
        else:
            Engine.tokens += 1
        status = 500 if "warm-up-fails" in MODE else 200
        self._answer(status, json.dumps({"choices": [{"text": "x"}], "error": {"message": "broken"}}))


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    """Behave as the mode says."""
    model, uds = Path(sys.argv[2]), sys.argv[sys.argv.index("--uds") + 1]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for mode in MODE & REFUSALS.keys():
        status, message = REFUSALS[mode]
        print(message)
        sys.exit(status)
    setsid = {"start_new_session": True} if "core-in-own-session" in MODE else {}
    core = subprocess.Popen(
        [sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(3600)"],
        **setsid,  # type: ignore[call-overload]
    )
    (model / "core.pid").write_text(str(core.pid))
    (model / "environment.json").write_text(json.dumps(dict(os.environ)))
    (model / "starts").open("a").write(json.dumps(sys.argv) + "\n")
    if "stalls" in MODE:
        print("INFO 11-23 09:46:30 [core.py:134] Initializing a V1 LLM engine (v0.32.0) with config: x")
        time.sleep(3600)
    if "ignores-term" in MODE:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print(START, end="")
    Server(uds, Engine).serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "--version":
        print("0.32.0")
        sys.exit()
    MODE = set(json.loads((Path(sys.argv[2]) / "fake.json").read_text())["mode"].split())
    main()
