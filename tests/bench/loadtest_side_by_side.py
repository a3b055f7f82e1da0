"""Measures the load tester: its own capacity, and side by side with others on the same mock engine.

    python tests/bench/loadtest_side_by_side.py [--undisturbed]

Writes `LOADTEST.md` beside this file; exit status 1 when a floor is missed. Takes about five minutes, and a
few more the first time: guidellm is installed by pip into `.cache/bench` then. `vllm bench serve` and a
tokenizer come from `.venv-vllm`, which `make up` installs; without it both peers are named as not measured.
All traffic goes to a mock engine on loopback, at most 2,200 requests/s for ten seconds.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from daemons.loadtest.measure.compare import load_result
from daemons.loadtest.measure.results import Result
from tests.support.mock_engine import MockEngine

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = CHECKOUT / ".cache" / "bench"
VLLM = CHECKOUT / ".venv-vllm"
GUIDELLM = "guidellm==0.7.1"
FLOORS = {"requests/s": 2_000.0, "tok/s": 20_000.0}
MOST_LAG = 0.005
FEW, MANY, RATE, TOKENS, PROMPT = 20, 1200, 40, 100, 30
REPEATS = 3
FIRST_US, TOKEN_US = 20_000, 25_000
FIGURES = ("req/s", "TTFT P50", "TTFT P99", "ITL mean", "TPOT mean", "E2E P50", "E2E P99")
TABLE = "| {} |\n"


@dataclass(frozen=True)
class Measured:
    """What a tool said (times in ms), and what it cost."""

    figures: Mapping[str, float]
    cpu: float
    """CPU seconds of the tool and all processes it started."""


Tool = Callable[[str, int, Path], Mapping[str, float]]


def spend(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a tool to its end.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
        )


def ours(url: str, requests: int, saved: Path) -> Mapping[str, float]:
    """This load tester."""
    options = f"--shape constant --rate {RATE} --requests {requests} --prompt-tokens {PROMPT} --max-lag 1s"
    run_ours(url, saved, *options.split(), "--output-tokens", str(TOKENS))
    group = load_result(saved).overall
    ms = group.latencies
    return {
        "req/s": group.request_rate,
        "TTFT P50": ms["ttft_from_send"].p50 * 1e3,
        "TTFT P99": ms["ttft_from_send"].p99 * 1e3,
        "ITL mean": ms["itl"].mean * 1e3,
        "TPOT mean": ms["tpot"].mean * 1e3,
        "E2E P50": ms["e2e_from_send"].p50 * 1e3,
        "E2E P99": ms["e2e_from_send"].p99 * 1e3,
    }


def run_ours(url: str, saved: Path, *options: str) -> Result:
    """Run this load tester; returns its result."""
    spend([sys.executable, "-m", "daemons.loadtest", "--url", url, "--json", str(saved), *options])
    return load_result(saved)


def vllm(program: str, tokenizer: str) -> Tool:
    """``vllm bench serve``."""

    def run(url: str, requests: int, saved: Path) -> Mapping[str, float]:
        options = (
            f"bench serve --backend openai-chat --base-url {url} --endpoint /v1/chat/completions "
            f"--model bench --tokenizer {tokenizer} --dataset-name random --random-input-len {PROMPT} "
            f"--random-output-len {TOKENS} --request-rate {RATE} --num-prompts {requests} "
            "--percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,99 --burstiness 1000000 "
            f"--save-result --result-dir {saved.parent} --result-filename {saved.name} --disable-tqdm"
        )
        spend([program, *options.split()])
        data = json.loads(saved.read_text())
        names = {"TTFT": "ttft", "E2E": "e2el"}
        tails = {f"{k} P{p}": data[f"p{p}_{v}_ms"] for k, v in names.items() for p in (50, 99)}
        means = {"ITL mean": data["mean_itl_ms"], "TPOT mean": data["mean_tpot_ms"]}
        return {"req/s": data["request_throughput"], **tails, **means}

    return run


def guidellm(program: str, tokenizer: str) -> Tool:
    """GuideLLM."""

    def run(url: str, requests: int, saved: Path) -> Mapping[str, float]:
        options = (
            f"run --backend kind=openai_http,target={url},model=bench --profile kind=constant,rate={RATE} "
            f"--constraint kind=max_requests,count={requests} "
            f"--data kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={TOKENS} "
            f"--tokenizer kind=hf_auto,model={tokenizer} --output kind=json,path={saved} --disable-console"
        )
        spend([program, *options.split()])
        metrics = json.loads(saved.read_text())["benchmarks"][0]["metrics"]
        ttft = metrics["time_to_first_token_ms"]["successful"]["percentiles"]
        e2e = metrics["request_latency"]["successful"]["percentiles"]
        return {
            "req/s": metrics["requests_per_second"]["successful"]["mean"],
            "TTFT P50": ttft["p50"],
            "TTFT P99": ttft["p99"],
            "ITL mean": metrics["inter_token_latency_ms"]["successful"]["mean"],
            "E2E P50": e2e["p50"] * 1e3,
            "E2E P99": e2e["p99"] * 1e3,
        }

    return run


def measure(tool: Tool, requests: int, folder: Path) -> Measured:
    """Run a tool against a fresh engine."""
    with MockEngine(first_us=FIRST_US, token_us=TOKEN_US) as engine:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures = tool(engine.url, requests, folder / "result.json")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        served = engine.stats()["served"]
    if served < requests:
        raise RuntimeError(f"the engine served {served} of {requests} requests")
    return Measured(figures, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def row(*cells: object) -> str:
    """A line of a table."""
    return TABLE.format(" | ".join(str(cell) for cell in cells))


def side_by_side(tools: Mapping[str, Tool], folder: Path) -> str:
    """The table of all tools, and what each additional token cost."""
    text = row("tool", *FIGURES, "CPU s", "of it fixed", "CPU us/token") + row(*["---"] * (len(FIGURES) + 4))
    for name, tool in tools.items():
        few, many = measure(tool, FEW, folder), measure(tool, MANY, folder)
        each = (many.cpu - few.cpu) / ((MANY - FEW) * TOKENS) * 1e6
        fixed = few.cpu - FEW * TOKENS * each / 1e6
        figures = (f"{many.figures[f]:.2f}" if f in many.figures else "-" for f in FIGURES)
        text += row(name, *figures, f"{many.cpu:.1f}", f"{fixed:.1f}", f"{each:.0f}")
        print(text.splitlines()[-1], flush=True)
    return text


@dataclass(frozen=True)
class Load:
    """A load on the load tester itself; `floor` names the rate that it must reach."""

    name: str
    floor: str
    options: str
    token_us: int


LOADS = (
    Load(
        "2,200 requests/s, whole answers",
        "requests/s",
        "--shape constant --rate 2200 --duration 10 --warmup 1 --no-stream --output-tokens 1 --max-lag 1s",
        0,
    ),
    Load(
        "525 streams, 210 begun a second",
        "tok/s",
        "--shape constant --rate 210 --duration 12 --warmup 3 --output-tokens 100 --max-lag 1s",
        TOKEN_US,
    ),
)


def capacity(folder: Path) -> tuple[str, list[str]]:
    """The load tester's own limits, with the engine on the same cores, as a table; and the floors it missed.

    Each load runs several times; the median run counts.
    """
    names = ("load", "load average", "requests/s", "tok/s", "dispatch lag P50 / P99 / max ms")
    text = row(*names, "loop lag P99 ms", "CPU of a core") + row(*["---"] * 7)
    missed: list[str] = []
    for load in LOADS:
        rates, lags = [], []
        for _ in range(REPEATS):
            busy = f"{os.getloadavg()[0]:.1f}"
            with MockEngine(first_us=FIRST_US, token_us=load.token_us) as engine:
                result = run_ours(engine.url, folder / "own.json", *load.options.split())
            health, group = result.generator, result.overall
            reached = {"requests/s": group.request_rate, "tok/s": group.output_token_rate}
            rates.append(reached[load.floor])
            lags.append(health.dispatch_p99)
            lag = " / ".join(
                f"{v * 1e3:.2f}" for v in (health.dispatch_p50, health.dispatch_p99, health.dispatch_max)
            )
            shown = (f"{value:,.0f}" for value in reached.values())
            text += row(
                load.name, busy, *shown, lag, f"{health.loop_p99 * 1e3:.2f}", f"{health.cpu_share:.0%}"
            )
            print(text.splitlines()[-1], flush=True)
        if median(rates) < FLOORS[load.floor]:
            missed.append(f"{median(rates):,.0f} {load.floor} of {FLOORS[load.floor]:,.0f}")
        if median(lags) >= MOST_LAG:
            missed.append(f"dispatch lag P99 of {median(lags) * 1e3:.1f} ms, not below 5, with {load.name}")
    return text, missed


def install_guidellm() -> Path:
    """The guidellm program, installed on first use beside what vLLM's environment has already."""
    home = CACHE / "guidellm"
    program = home / "bin" / "guidellm"
    if not program.exists():
        print(f"installing {GUIDELLM} into {home}", flush=True)
        subprocess.run([str(VLLM / "bin" / "python"), "-m", "venv", "--clear", str(home)], check=True)
        packages = next((home / "lib").glob("python3*/site-packages"))
        shared = next((VLLM / "lib").glob("python3*/site-packages")).resolve()
        (packages / "vllm.pth").write_text(f"{shared}\n")  # its torch alone is gigabytes
        subprocess.run(
            [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", GUIDELLM], check=True
        )
    return program


def peers() -> dict[str, Tool]:
    """The other load testers that can run here."""
    program = VLLM / "bin" / "vllm"
    if not program.exists():
        return {}
    tokenizer = CACHE / "tiny"
    build = CHECKOUT / "tests" / "support" / "build_tiny_model.py"
    subprocess.run([str(VLLM / "bin" / "python"), str(build), str(tokenizer)], check=True)
    found = {"vllm bench serve": vllm(str(program), str(tokenizer))}
    try:
        found["guidellm"] = guidellm(str(install_guidellm()), str(tokenizer))
    except subprocess.CalledProcessError as error:
        print(f"guidellm could not be installed: {error}", flush=True)
    return found


@contextlib.contextmanager
def undisturbed(*, wanted: bool) -> Iterator[None]:
    """Let what is started here go before the other work of a shared machine."""
    if wanted:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        if wanted:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def main() -> int:
    """Measure everything and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--undisturbed",
        action="store_true",
        help="measure its own limits at real-time priority (as root), where other work shares the cores",
    )
    args = parser.parse_args()
    tools: dict[str, Tool] = {"llmctl loadtest": ours, **peers()}
    missing = [name for name in ("vllm bench serve", "guidellm") if name not in tools]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        with undisturbed(wanted=args.undisturbed):
            own, missed = capacity(Path(folder))
        table = side_by_side(tools, Path(folder))
    page = Path(__file__).with_name("LOADTEST.md")
    page.write_text(
        PAGE.format(
            own=own,
            verdict=f"Missed here: {'; '.join(missed)}." if missed else "All floors were held here.",
            table=table,
            missing=f"\nNot measured here (no .venv-vllm, or no way to install it): {', '.join(missing)}.\n"
            if missing
            else "",
            date=datetime.now(UTC).date(),
            cores=os.cpu_count(),
            load=load,
            shared=SHARED if load > (os.cpu_count() or 1) else "",
            scheduling=UNDISTURBED if args.undisturbed else "",
            many=MANY,
            rate=RATE,
            tokens=TOKENS,
        )
    )
    print("\n".join(missed) or "all floors held")
    return 1 if missed else 0


UNDISTURBED = """ These runs had
real-time priority (round robin, engine and tool alike), because other work kept the cores busy."""
SHARED = """\
Other work had the cores as well and delayed tools and engine as it came: only the CPU columns are to be
relied on here.
"""
PAGE = """\
# The load tester, measured

Written by `tests/bench/loadtest_side_by_side.py` on {date}: {cores} cores, load average {load:.1f} before it
began. The engine and the tool share the cores with whatever else runs. The engine is
`tests/support/mock_engine`: 20 ms to the first token, 25 ms between tokens.

## Its own limits

{own}
The floors: at least 2,000 requests/s, and 20,000 tokens/s over 500 streams, each with a dispatch lag P99
below 5 ms; the median of the runs counts. {verdict}
Rates are those of the window after the warm-up. The generator is as late as the kernel lets it run: on cores
that others use as well, only an undisturbed run says something about its lag.{scheduling}

## Side by side

{many} requests of {tokens} tokens, {rate} a second, evenly spaced; milliseconds, counted from the send. "CPU"
is user and system time of the tool with all its processes; "fixed" is what it costs before the first request,
from a second run with fewer requests, and the last column is what each further token costs.

{table}{missing}
{shared}TTFT, end to end and the time per output token are defined alike, and agree where the cores are free.
`vllm bench serve` counts the first event, whose content is empty, and the last one as tokens in its
inter-token latency, so that its mean is lower than the true pace of 25 ms; the load tester counts only events
that bring something new. All request rates include the run-out of the last answers.
"""

if __name__ == "__main__":
    sys.exit(main())
