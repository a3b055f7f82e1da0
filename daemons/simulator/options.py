"""The command line: vLLM's ``serve`` flags, and the simulator's own ``--sim-*``.

``vllm-0.32-flags.txt`` lists every flag of vLLM 0.32 with its arity; those that change nothing here are
accepted and ignored, any other is refused with vLLM's words.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from daemons.runtime.version import VERSION
from daemons.simulator.faults import Fault, parse_flag

VLLM_VERSION = "0.32.0"
METRIC_RELEASES = ("0.32", "0.6.6")

_FLAGS = Path(__file__).with_name("vllm-0.32-flags.txt")
_DEFAULT_MODEL = "Qwen/Qwen3-0.6B"

_ABOUT = """\
An engine that behaves like vLLM without a GPU and without a model: the same flags, start-up log, HTTP API,
error bodies, metrics and habits at shutdown, with token timing from a simple model. For tests, demos and
routing studies; its speed says nothing about real hardware.
"""

_EXAMPLES = """\
examples:
  llm-simulator serve llama-7b --port 8100
  curl localhost:8100/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"model": "llama-7b", "messages": [{"role": "user", "content": "Hello"}], "stream": true}'

  # a big batch on a slow card, ready at once, the same run every time
  llm-simulator serve m --uds /tmp/m.sock --sim-startup-seconds 0 --sim-inter-token-ms 30 --sim-seed 7

  # faults from the start, or at run time
  llm-simulator serve m --sim-fault hang,after_seconds=30
  llm-simulator serve m --sim-faults
  curl localhost:8000/sim/faults -H 'Content-Type: application/json' \\
       -d '{"fault": "truncate", "after_chunks": 5, "requests": 1}'
  curl -X DELETE localhost:8000/sim/faults

faults (fields: after_seconds; after_chunks, requests for truncate, cut, reset, malformed; factor for slow):
  hang       no further token; /health stays 200, counters freeze, keep-alive comments go on
  death      open streams get an error event and [DONE]; the process exits with 0, as vLLM's API server does
  busy       new requests get 503
  slow       every step takes `factor` times as long
  truncate   the connection closes in the middle of a stream
  cut        the body ends cleanly, but without finish_reason and [DONE]
  reset      the connection is reset in the middle of a stream
  malformed  one event is no JSON

All other flags are those of `vllm serve` 0.32; what has no meaning here is accepted and ignored.
"""


class _Refusing(argparse.ArgumentParser):
    """Ends with status 2 and vLLM's form of the message."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"usage: vllm serve [model_tag] [options]\nvllm serve: error: {message}\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options of one run; leaves the process for ``--help``, ``--version`` and what vLLM refuses."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] in (["--version"], ["-v"]):
        print(f"{VLLM_VERSION} (llm-simulator {VERSION})")
        sys.exit(0)
    if arguments[:1] in ([], ["--help"], ["-h"]):
        _serve_parser().print_help()
        sys.exit(0 if arguments else 2)
    if arguments[0] != "serve":
        sys.exit(_usage(f"argument subparser: invalid choice: {arguments[0]!r} (choose from 'serve')"))
    if any(argument.startswith("--help=") for argument in arguments):
        _print_all()
        sys.exit(0)
    options, unknown = _serve_parser().parse_known_args(_with_file(_dashes(arguments[1:])))
    if unknown:
        sys.exit(_usage(f"unrecognized arguments: {' '.join(unknown)}"))
    return _finish(options)


def _print_all() -> None:
    """``--help=all``: every flag of vLLM, too, also those that are ignored here."""
    _serve_parser().print_help()
    print("\nevery flag of vllm serve:")
    for line in _flag_lines():
        arity, *names = line.split()
        value = "" if arity == "0" else " " + names[0].lstrip("-").replace("-", "_").upper()
        print("  " + ", ".join(name + value for name in names))


def _flag_lines() -> list[str]:
    return _FLAGS.read_text(encoding="ascii").splitlines()


def _usage(message: str) -> int:
    print(f"usage: vllm [-h] [-v] {{serve}} ...\nvllm: error: {message}", file=sys.stderr)
    return 2


def _finish(options: argparse.Namespace) -> argparse.Namespace:
    options.model = options.model or options.model_tag or _DEFAULT_MODEL
    options.served_model_name = options.served_model_name or [options.model]
    return options


def _dashes(arguments: list[str]) -> list[str]:
    """Flags with underscores are the same flags; a dotted part sets a key within a JSON flag."""
    plain: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            name = name.replace("_", "-")
            if "." in name:
                plain += [name.partition(".")[0], *([value] if equals else [])]
                continue
            argument = name + equals + value  # noqa: PLW2901 - the same flag, spelled with dashes
        plain.append(argument)
    return plain


def _with_file(arguments: list[str]) -> list[str]:
    """Flags of a ``--config`` file in front of those of the command line, which therefore win."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(arguments)[0].config
    if path is None:
        return arguments
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        sys.exit(_usage(f"argument --config: {path}: {error}"))
    found: list[str] = []
    for key, value in settings.items():
        flag = "--" + str(key).replace("_", "-")
        values = value if isinstance(value, list) else [value]
        found += [flag] if value is True else [] if value is False else [flag, *map(str, values)]
    return found + arguments


def _serve_parser() -> argparse.ArgumentParser:
    parser = _Refusing(
        prog="llm-simulator serve",
        usage="llm-simulator serve [MODEL] [vLLM's flags] [--sim-* flags]",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help="any name, or an existing folder")
    _add_known(parser)
    _add_own(parser)
    given = {name for action in parser._actions for name in action.option_strings}  # noqa: SLF001 - no public list
    for line in _flag_lines():
        _add_ignored(parser, line.split(), given)
    return parser


def _add_known(parser: argparse.ArgumentParser) -> None:
    """The flags of vLLM that change what the simulator does."""
    group = parser.add_argument_group("vLLM's flags that have an effect")
    add = group.add_argument
    add("--model", help=argparse.SUPPRESS)
    add("--config", metavar="FILE", help="YAML with flags; the command line wins")
    add("--host", help="address to listen on (default: all)")
    add("--port", type=int, default=8000)
    add(
        "--uds", type=Path, help="unix socket instead of host and port; its file stays behind, as vLLM's does"
    )
    add("--served-model-name", nargs="+", help="names clients use; the first is shown")
    add("--api-key", nargs="+", default=[], help="bearer keys for /v1")
    add("--max-model-len", type=_tokens, help="tokens of context (default: the model folder's, else 8192)")
    add("--max-num-seqs", type=int, default=256)
    add("--max-num-batched-tokens", type=_tokens, default=2048)
    add("--max-num-queued-reqs", type=int, help="more get 503")
    add("--max-num-queued-tokens", type=_tokens, help="more waiting prompt tokens get 503")
    add("--block-size", type=int, help="tokens in a KV block (default: 16)")
    add("--num-gpu-blocks-override", type=int)
    add("--kv-cache-memory-bytes", type=_size, help="size of the KV cache")
    add("--gpu-memory-utilization", type=float, default=0.92)
    add("--tensor-parallel-size", "-tp", type=int, default=1)
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    add("--enable-auto-tool-choice", action=argparse.BooleanOptionalAction, default=False)
    add("--enable-prompt-tokens-details", action=argparse.BooleanOptionalAction, default=False)
    add("--enable-request-id-headers", action=argparse.BooleanOptionalAction, default=False)
    add("--enforce-eager", action=argparse.BooleanOptionalAction, default=False, help="skip graph capture")
    add("--disable-uvicorn-access-log", action=argparse.BooleanOptionalAction, default=False)
    add("--sse-keep-alive-interval", type=int, default=0, help="seconds between comments on an idle stream")
    add("--shutdown-timeout", type=float, default=0, help="0: SIGTERM leaves open streams hanging; N: drains")
    add("--runner", default="auto", help="pooling serves /v1/embeddings instead of generation")


def _add_own(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the simulator's own flags")
    add = group.add_argument
    add("--sim-startup-seconds", type=float, default=2.0, help="duration of the start-up (default: 2)")
    add("--sim-inter-token-ms", type=float, default=20.0, help="step with one sequence, ms (default: 20)")
    add("--sim-sequence-us", type=float, default=47.0, help="added by each further one, µs (default: 47)")
    add("--sim-prefill-rate", type=float, default=8000.0, help="prompt tokens a second (default: 8000)")
    add("--sim-jitter", type=float, default=0.02, help="relative deviation of a step (default: 0.02)")
    add("--sim-seed", type=int, default=0, help="of text and jitter (default: 0)")
    add("--sim-answer-tokens", type=int, default=120, help="mean length of an answer (default: 120)")
    add("--sim-gpu-gib", type=float, default=48.0, help="memory of one GPU, GiB (default: 48)")
    add("--sim-weights-gib", type=float, default=16.0, help="memory of the weights, GiB (default: 16)")
    add("--sim-kv-bytes", type=int, help="KV cache of one token (default: the model folder's, else 131072)")
    add("--sim-metrics", choices=METRIC_RELEASES, default="0.32", help="release whose /metrics to show")
    add(
        "--sim-fault", type=_fault, action="append", default=[], metavar="NAME[,KEY=VALUE…]", help="see below"
    )
    add("--sim-faults", action="store_true", help="offer GET, POST and DELETE /sim/faults")


def _add_ignored(parser: argparse.ArgumentParser, fields: list[str], given: set[str]) -> None:
    arity, *names = fields
    names = [name for name in names if name not in given]
    if not names:
        return
    settings: dict[str, Any] = {"action": "store_true"} if arity == "0" else {}
    if arity in "?+":
        settings = {"nargs": arity}
    parser.add_argument(*names, **settings, dest="ignored", help=argparse.SUPPRESS)


_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _size(text: str) -> int:
    """A number with an optional unit: ``25.6k`` is 25,600, ``4G`` is 4 GiB."""
    unit = _UNITS.get(text[-1:], 1)
    number = text[:-1] if text[-1:] in _UNITS else text
    try:
        return int(float(number) * unit) if unit > 1 else int(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None


def _tokens(text: str) -> int | None:
    """`_size`, with ``auto`` and ``-1`` for the default."""
    return None if text in ("auto", "-1") else _size(text)


def _fault(text: str) -> Fault:
    try:
        return Fault.model_validate(parse_flag(text))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise argparse.ArgumentTypeError(f"{text!r}: {faults}") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
