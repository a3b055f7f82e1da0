"""The command line of the load tester, and the plan it amounts to."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from daemons.loadtest.load.plan import Plan, Trace
from daemons.loadtest.measure.scrape import KINDS, Kind, Source
from daemons.runtime import settings
from daemons.runtime.errors import EXIT_CONFIG, Fatal

DESCRIPTION = "Load an OpenAI-compatible server and report what its clients met."
EPILOG = """\
examples:
  llmctl loadtest --url http://localhost:8080 --key-file key --concurrency 32 --duration 60s
  llmctl loadtest --url http://localhost:8080 --rate 5 --objective 'ttft p95 < 500ms' --html report.html
  llmctl loadtest --url http://localhost:8080 --find-capacity --objective 'e2e p99 < 10s' --duration 30s
  llmctl loadtest --url http://localhost:8080 --trace BurstGPT_1.csv --speed 4 --requests 2000
  llmctl loadtest --url http://localhost:8080 --rate 5 --json today.json --compare last-week.json

Without a length or an endpoint, a mix of four prompt types is sent that fits a context of 1,024 tokens; mixes
of your own go into a plan (docs/loadtest.md). Ctrl-C ends a run and still reports it. A private certificate
authority is named with SSL_CERT_FILE=FILE.

exit status:
  0 done, objectives met       2 bad usage                        5 worse than the baseline
  1 an objective was missed,   3 invalid: the generator lagged    78 bad plan or file
    or no request succeeded    4 the target is gone               130 interrupted
"""
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h)?$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SHAPES = ("closed", "constant", "poisson", "gamma", "ramp", "steps")


def seconds(text: str) -> float:
    """A duration such as ``90``, ``90s``, ``1.5m`` or ``1h``, in seconds.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = _DURATION.match(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write it like 30s, 5m or 1h")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def source(text: str) -> Source:
    """``KIND=URL`` as a source of metrics.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    name, _, url = text.partition("=")
    kinds: dict[str, Kind] = {kind: kind for kind in KINDS}
    if name not in kinds or not url.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r}: write it like engine=http://127.0.0.1:9110/metrics")
    return Source(kinds[name], url)


def _key(text: str) -> dict[str, Any]:
    name, equals, file = text.partition("=")
    return {"name": name, "file": Path(file)} if equals else {"name": Path(text).stem, "file": Path(text)}


def _steps(text: str) -> list[dict[str, float]]:
    steps = []
    for part in text.split(","):
        rate, _, length = part.partition(":")
        try:
            steps.append({"rate": float(rate), "seconds": seconds(length)})
        except ValueError:
            raise argparse.ArgumentTypeError(f"{part!r}: write steps like 2:30s,4:30s,8:30s") from None
    return steps


def _length(text: str) -> int | str:
    if not re.fullmatch(r"[1-9]\d*(\.\.[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r}: write it like 128 or 50..200")
    return int(text) if text.isdecimal() else text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option to `parser`."""
    parser.add_argument("--url", required=True, help="the target; always named here, never taken from a file")
    parser.add_argument("--model", help="default: the first that the target lists")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="a plan in YAML; options go before it")
    parser.add_argument(
        "--key-file",
        type=_key,
        action="append",
        metavar="[NAME=]FILE",
        help="API key; several share the load (default: $LLM_API_KEY)",
    )
    parser.add_argument(
        "--keys-dir",
        type=Path,
        metavar="DIR",
        help="the gateway's keys.d: warns first when a limit would bind",
    )
    _add_load(parser.add_argument_group("load"))
    _add_requests(parser.add_argument_group("requests"))
    _add_judgement(parser.add_argument_group("judgement"))
    _add_output(parser.add_argument_group("output"))


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--shape", choices=_SHAPES, help="default: closed, or poisson with --rate")
    group.add_argument(
        "--concurrency", type=int, metavar="N", help="clients of a closed loop; else the most in flight"
    )
    group.add_argument(
        "--rate", type=float, metavar="N", help="requests or conversations a second; where a search begins"
    )
    group.add_argument("--to-rate", type=float, metavar="N", help="where a ramp that begins at --rate ends")
    group.add_argument(
        "--burstiness", type=float, metavar="N", help="of gamma arrivals; below 1 they cluster"
    )
    group.add_argument("--steps", type=_steps, metavar="RATE:TIME,…", help="rates one after the other")
    group.add_argument("--trace", type=Path, metavar="FILE", help="BurstGPT, Azure, Mooncake or ShareGPT")
    group.add_argument("--speed", type=float, metavar="N", help="replay a trace so many times as fast")
    group.add_argument(
        "--duration", type=seconds, metavar="TIME", help="of sending (default 60s, or a whole trace)"
    )
    group.add_argument(
        "--requests", type=int, metavar="N", help="send so many instead (ShareGPT: conversations)"
    )
    group.add_argument("--max-requests", type=int, metavar="N", help="budget of a run or a whole search")
    group.add_argument("--max-tokens", type=int, metavar="N", help="the same, prompt and output tokens")
    group.add_argument("--timeout", type=seconds, metavar="TIME", help="for a whole answer (default 600s)")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed sends the same load (default 0)")


def _add_requests(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--endpoint", choices=("chat", "completions", "embeddings"), help="one prompt type (default chat)"
    )
    group.add_argument("--prompt-tokens", type=_length, metavar="N|LOW..HIGH", help="length of prompts")
    group.add_argument("--output-tokens", type=_length, metavar="N|LOW..HIGH", help="most of an answer")
    group.add_argument("--prefix-tokens", type=int, metavar="N", help="leading tokens that all prompts share")
    group.add_argument("--no-stream", action="store_true", help="ask for whole answers")
    group.add_argument("--ignore-eos", action="store_true", help="answers of exactly the asked length (vLLM)")


def _add_judgement(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--objective", action="append", metavar="TEXT", help="for example 'ttft p95 < 500ms'")
    group.add_argument("--warmup", type=seconds, metavar="TIME", help="leave out so much (default: detected)")
    group.add_argument(
        "--max-lag",
        type=seconds,
        metavar="TIME",
        help="dispatch lag P99 that invalidates the run (default 10ms)",
    )
    group.add_argument(
        "--metrics",
        type=source,
        action="append",
        metavar="KIND=URL",
        help=f"scraped to attribute the tail; kinds: {', '.join(KINDS)} (default: standard ports here)",
    )
    group.add_argument("--find-capacity", action="store_true", help="search the highest rate that meets them")
    group.add_argument(
        "--max-rate",
        type=float,
        metavar="N",
        default=10_000.0,
        help="ceiling of that search (default 10,000)",
    )
    group.add_argument("--compare", type=Path, metavar="JSON", help="a saved result to compare with")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--json", type=Path, metavar="FILE", help="save everything, with full histograms")
    group.add_argument("--html", type=Path, metavar="FILE", help="save a page with plots")
    group.add_argument("--plain", action="store_true", help="no live display")


def build_plan(args: argparse.Namespace) -> Plan:
    """The plan of the command line: the file's, with the options' changes.

    Raises:
        Fatal: the file or an option is wrong; every fault at once.
    """
    data: dict[str, Any] = {}
    if args.plan is not None:
        plan = settings.load(args.plan, Plan)
        data = _beside(args.plan.parent, plan).model_dump(exclude_unset=True)
    for name in ("model", "duration", "requests", "warmup", "max_lag", "seed"):
        if getattr(args, name) is not None:
            data[name] = getattr(args, name)
    if args.key_file:
        data["keys"] = args.key_file
    if args.objective:
        data["objectives"] = [*data.get("objectives", []), *args.objective]
    _change(data, "budget", {"requests": args.max_requests, "tokens": args.max_tokens})
    _change(data, "timeouts", {"total": args.timeout})
    load = _load(args, data.get("load"))
    if load is not None:
        data["load"] = load
    data["mix"] = _mix(args, data.get("mix"))
    if data["mix"] is None:
        del data["mix"]
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        faults = (f"{_place(where)}: {expected}" for where, expected in settings.explain(error, Plan))
        raise Fatal("\n".join(faults), EXIT_CONFIG) from None


_OPTIONS = {
    "rate": "--rate", "to_rate": "--to-rate", "from_rate": "--rate", "steps": "--steps", "file": "--trace",
    "burstiness": "--burstiness", "concurrency": "--concurrency", "speed": "--speed",
    "duration": "--duration", "requests": "--requests",
}  # fmt: skip


def _place(where: tuple[int | str, ...]) -> str:
    """A fault's place in the plan, with the option that sets it where there is one."""
    text = ".".join(map(str, where)) or "plan"
    option = _OPTIONS.get(str(where[-1])) if where else None
    return f"{text} ({option})" if option else text


def _change(data: dict[str, Any], key: str, changes: Mapping[str, Any]) -> None:
    given = {name: value for name, value in changes.items() if value is not None}
    if given:
        data[key] = {**data.get(key, {}), **given}


def _beside(folder: Path, plan: Plan) -> Plan:
    """Files named in a plan lie beside it unless their path is absolute."""
    beside: dict[str, Any] = {}
    if plan.keys:
        beside["keys"] = [key.model_copy(update={"file": folder / key.file}) for key in plan.keys]
    if isinstance(plan.load, Trace):
        beside["load"] = plan.load.model_copy(update={"file": folder / plan.load.file})
    return plan.model_copy(update=beside)


def _load(args: argparse.Namespace, planned: Mapping[str, Any] | None) -> dict[str, Any] | None:
    shape = args.shape or _implied_shape(args)
    if shape is None and planned is None and args.concurrency is None:
        return None
    if shape is None:
        shape = planned["shape"] if planned is not None else "closed"
    load: dict[str, Any] = dict(planned) if planned is not None and planned["shape"] == shape else {}
    load["shape"] = shape
    first = "from_rate" if shape == "ramp" else "rate"
    given = {first: args.rate, "to_rate": args.to_rate, "burstiness": args.burstiness, "steps": args.steps}
    given |= {"file": args.trace, "speed": args.speed, "concurrency": args.concurrency}
    load |= {name: value for name, value in given.items() if value is not None}
    if args.find_capacity and shape == "poisson":
        load.setdefault("rate", 1.0)
    return load


def _implied_shape(args: argparse.Namespace) -> str | None:
    implied = (
        ("trace", args.trace),
        ("steps", args.steps),
        ("ramp", args.to_rate),
        ("gamma", args.burstiness),
        ("poisson", args.rate or args.find_capacity or None),
    )
    return next((shape for shape, given in implied if given is not None), None)


def _mix(args: argparse.Namespace, planned: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """One type of its own when lengths or the endpoint are given; else the planned or default mix."""
    single = {
        "endpoint": args.endpoint,
        "prompt_tokens": args.prompt_tokens,
        "output_tokens": args.output_tokens,
        "shared_prefix_tokens": args.prefix_tokens,
    }
    given = {name: value for name, value in single.items() if value is not None}
    if given:
        planned = [{"name": args.endpoint or "chat", **given}]
    changes: dict[str, Any] = {}
    if args.no_stream:
        changes["stream"] = False
    if args.ignore_eos:
        changes["ignore_eos"] = True
    if not changes:
        return planned
    base = planned if planned is not None else [kind.model_dump() for kind in Plan().mix]
    return [{**kind, **changes} for kind in base]
