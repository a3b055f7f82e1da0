"""A small service under load with a real Prometheus on it: gateway, engines, GPU exporter, node exporter."""

import contextlib
import os
import random
import re
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from observability.prometheus.client import Prometheus
from observability.prometheus.local import config, node_exporter, running
from observability.prometheus.render import RULES
from tests.integration.engine.conftest import EngineUnderTest, wait_for
from tests.integration.gpu_exporter.conftest import FakeMachine
from tests.integration.observability.load import Load
from tests.support.gateway import write_key
from tests.support.ports import free_port

ROOT = Path(__file__).parents[3]
HOST = "gpu1"
KEYS: dict[str, dict[str, Any]] = {
    "team-chat": {"class": "interactive", "limits": {"requests_per_minute": 6000, "concurrency": 40}},
    "team-search": {"limits": {"tokens_per_minute": 2_000_000, "tokens_per_day": 50_000_000}},
    "nightly": {"class": "batch", "limits": {"concurrency": 8}},
    "trial": {"limits": {"requests_per_minute": 30}},
}
_SIMULATOR = """
import sys
from daemons.simulator.__main__ import main
serves = sys.argv[1:2] == ["serve"] and "--help=all" not in sys.argv
sys.exit(main(sys.argv[1:] + ({flags!r} if serves else [])))
"""


class Lab:
    """What runs, and the Prometheus that looks at it."""

    def __init__(self, folder: Path, machine: FakeMachine, stack: ExitStack) -> None:
        self._folder = folder
        self._machine = machine
        self._stack = stack
        self._jobs: dict[str, list[tuple[str, dict[str, str]]]] = {}
        self._engines: list[dict[str, Any]] = []
        self.started = time.time()

    def simulate(self, name: str, model: str, *flags: str) -> None:
        """An engine on the simulator."""
        script = self._folder / f"{name}.py"
        script.write_text(_SIMULATOR.format(flags=["--sim-startup-seconds", "0.2", *flags]))
        settings = {"vllm": [sys.executable, str(script)], "vllm_version": "0.32.0"}
        self.engine(name, model, {**settings, "model": model, "kv_cache_memory_bytes": 1 << 30})

    def engine(self, name: str, model: str, settings: dict[str, Any]) -> None:
        """An engine that serves `model`."""
        folder = self._folder / name
        folder.mkdir()
        engine = EngineUnderTest(
            folder, {"served_names": [model], "max_model_len": 8192, **settings}, self._stack
        )
        wait_for(engine.ready, 240)
        self._engines.append({"name": name, "url": f"unix://{engine.run}/api.sock", "models": [model]})
        self._add("llm-engine", engine.settings["metrics"]["port"], engine=name)

    def gateway(self, broken: str) -> Load:
        """The gateway, before every engine so far; returns a load for them, and rarely for `broken`."""
        folder = self._folder / "gateway"
        folder.mkdir()
        for key, more in KEYS.items():
            write_key(folder / "keys.d", key, key, **more)
        port, metrics = free_port(), free_port()
        settings = {
            "listen": {"port": port},
            "metrics": {"port": metrics},
            "admin": str(folder / "admin.sock"),
            "engines": self._engines,
        }
        (folder / "gateway.yaml").write_text(yaml.safe_dump(settings))
        self._start("llm-gateway", metrics, ["daemons.gateway", "--config", str(folder / "gateway.yaml")])
        models = [engine["models"][0] for engine in self._engines]
        return Load(port, [model for model in models if model != broken], broken, list(KEYS))

    def exporter(self) -> None:
        """The GPU exporter on the fake machine, whose readings change."""
        self._machine.use("a6000-pair")
        self._machine.add(
            "0 ecc 1 1", *(f"0 ecc_errors.{kind}.{which} 0" for kind in (0, 1) for which in (0, 1))
        )
        port = free_port()
        settings = {"listen": {"port": port}, "kernel_log": "off", "interval": 0.5, "expected_gpus": 2}
        (self._folder / "exporter.yaml").write_text(yaml.safe_dump(settings))
        command = ["daemons.gpu_exporter", "--config", str(self._folder / "exporter.yaml")]
        self._start("llm-gpu-exporter", port, command, **self._machine.environment)
        end = threading.Event()
        thread = threading.Thread(target=self._work_gpus, args=(end,), daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(end.set)

    def node(self) -> None:
        """The node exporter, with the file that tells when certificates end; it cannot ask systemd here."""
        port, folder = free_port(), self._folder / "textfile"
        folder.mkdir()
        text = f'llm_certificate_expiry_timestamp_seconds{{file="/etc/llm/tls.pem"}} {time.time() + 5e6}\n'
        (folder / "llm-certificates.prom").write_text(text)
        options = [f"--collector.textfile.directory={folder}", "--no-collector.systemd"]
        self._stack.enter_context(node_exporter(port, *options))
        self._add("node", port)

    def prometheus(self, interval: str) -> Prometheus:
        """Prometheus on everything so far; groups with an interval of their own go by `interval` too."""
        port, rules = free_port(), hasty_rules(self._folder)
        self._add("prometheus", port)
        settings = config(self._jobs, rules, interval)
        made, _ = self._stack.enter_context(watching(self._folder, settings, port))
        targets = sum(map(len, self._jobs.values()))
        wait_for(lambda: answers(made, targets), 60)
        return made

    def record(self, folder: Path) -> None:
        """Keep what each target but Prometheus answers, without the times at which counters began."""
        for job, targets in self._jobs.items():
            for address, labels in targets if job != "prometheus" else ():
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                    text = re.sub(r"^.*_created.*\n", "", answer.read().decode(), flags=re.MULTILINE)
                name = f"{job}-{labels['engine']}" if "engine" in labels else job
                (folder / f"{name}.txt").write_text(text)

    def _start(self, job: str, port: int, module: list[str], **environment: str) -> None:
        log = self._stack.enter_context((self._folder / f"{job}.log").open("wb"))
        command = [sys.executable, "-m", *module]
        self._stack.enter_context(running(command, cwd=ROOT, stderr=log, env=os.environ | environment))
        self._add(job, port)

    def _add(self, job: str, port: int, **labels: str) -> None:
        self._jobs.setdefault(job, []).append((f"127.0.0.1:{port}", {"host": HOST, **labels}))

    def _work_gpus(self, end: threading.Event) -> None:
        chance = random.Random(7)  # noqa: S311 - readings, no secrets
        base = list(self._machine.lines)
        energy = {"0": 912_345_678, "1": 612_345_678}
        while not end.wait(1):
            self._machine.lines = list(base)
            fresh = []
            for gpu, heat in (("0", 74), ("1", 68)):
                busy = chance.randint(70, 99)
                power = 150_000 + busy * 1_400 + chance.randint(0, 8_000)
                energy[gpu] += power
                fresh += [
                    f"{gpu} utilization {busy} {busy * 2 // 3}",
                    f"{gpu} power {power}",
                    f"{gpu} energy {energy[gpu]}",
                    f"{gpu} temperature.0 {heat + busy // 12}",
                    f"{gpu} clock.1 {1500 + chance.randint(0, 14) * 15}",
                ]
            self._machine.add(*fresh)


def hasty_rules(folder: Path) -> Path:
    """A folder with the rules, where no group has an interval of its own: tests do not wait for minutes."""
    rules = folder / "rules"
    rules.mkdir()
    for path in RULES.glob("*.yml"):
        text = re.sub(r"^    interval: \d+m\n", "", path.read_text(), flags=re.MULTILINE)
        (rules / path.name).write_text(text)
    return rules


@contextlib.contextmanager
def watching(
    folder: Path, settings: dict[str, Any], port: int, *options: str
) -> Iterator[tuple[Prometheus, int]]:
    """A Prometheus on `port` whose data is in the folder ``tsdb`` of `folder`, and its process id."""
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings))
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}", *options]
    with running([*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]) as process:
        yield Prometheus(f"http://127.0.0.1:{port}"), process.pid


def answers(prometheus: Prometheus, targets: int) -> bool:
    """Whether it does, and has found `targets` to be up."""
    try:
        return len(prometheus.instant("up == 1", time.time())) == targets
    except OSError:
        return False


@contextlib.contextmanager
def lab(folder: Path, library: Path) -> Iterator[Lab]:
    """A lab in `folder`, with the fake NVML `library`; everything ends with the context."""
    with ExitStack() as stack:
        yield Lab(folder, FakeMachine(folder / "nvml.conf", library), stack)


def missing() -> str:
    """Programs of the distribution that are not here, empty when all are."""
    programs = {"prometheus": "prometheus", "prometheus-node-exporter": "prometheus-node-exporter"}
    return " ".join(package for program, package in programs.items() if shutil.which(program) is None)
