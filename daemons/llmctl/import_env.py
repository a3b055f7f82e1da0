"""``llmctl import-env``: an ``.env`` file of the original as inventory variables, and what changed."""

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=\s*(?P<value>.*)")
_WEAK_KEYS = ("dev-key-1", "change-me")
_NEVER_EXISTED = {"meta-llama/Llama-3.2-7B-Instruct": "meta-llama/Llama-3.1-8B-Instruct"}
_GIB_KIB = 1 << 20


@dataclass(slots=True)
class Import:
    """What becomes of a file.

    Attributes:
        variables: inventory variables.
        notes: what changed meaning, one sentence each, in the order of the file's names here.
    """

    engine: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def add_parser(subparsers: Any) -> None:
    """Add ``import-env`` to `llmctl`'s verbs."""
    parser = subparsers.add_parser(
        "import-env",
        help="turn an .env file of the original into inventory variables",
        description="Prints the variables as YAML, and what changed its meaning on standard error.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the variables as YAML, and the notes on standard error.

    Raises:
        Fatal: the file cannot be read, or a value makes no sense.
    """
    try:
        text = args.file.read_text(encoding="utf-8")
    except OSError as error:
        raise Fatal(describe_os_error(error, "read"), EXIT_CONFIG) from None
    made = convert(parse_env(text, args.file), host_memory_gib())
    print(yaml.safe_dump(made.variables, sort_keys=False), end="")
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def host_memory_gib(meminfo: Path = Path("/proc/meminfo")) -> float:
    """Memory of this machine in GiB; 0 when it does not say."""
    try:
        found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return 0.0
    return int(found.group(1)) / _GIB_KIB if found else 0.0


def parse_env(text: str, path: Path) -> dict[str, str]:
    """The assignments in an ``.env`` file, quotes and comments removed.

    Raises:
        Fatal: a line is none.
    """
    found: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            # The line itself may hold a secret.
            raise Fatal(f"{path}:{number}: expected NAME=VALUE", EXIT_CONFIG)
        found[match["name"]] = _unquoted(match["value"])
    return found


def _unquoted(value: str) -> str:
    if value[:1] in ("'", '"') and value[0] in value[1:]:
        return value[1 : value.index(value[0], 1)]
    return re.split(r"\s+#", value)[0].strip()


def convert(env: Mapping[str, str], memory_gib: float) -> Import:
    """The inventory variables for `env`.

    Args:
        env: names and values.
        memory_gib: memory of the GPU host, to judge the KV tier; 0 when it is not known.

    Raises:
        Fatal: with a line for each value that makes no sense.
    """
    made, faults = Import(), []
    made.engine = {"name": "engine0", "gpus": [0], "metrics_port": 9110}
    for name, value in env.items():
        handler = _HANDLERS.get(name)
        if handler is None:
            made.notes.append(
                f"{name} is unknown here and was left out; `llmctl import-env --help` lists what is known"
            )
            continue
        try:
            handler(made, value, env, memory_gib)
        except ValueError:
            faults.append(f"{name}: expected a number")
    if faults:
        raise Fatal("\n".join(faults), EXIT_CONFIG)
    made.variables = {"llm_engines": [made.engine], **made.variables}
    return made


def _model(made: Import, value: str, _: Mapping[str, str], __: float) -> None:
    model = _NEVER_EXISTED.get(value, value)
    if model != value:
        made.notes.append(f"MODEL_NAME: {value} never existed; {model} is taken instead")
    short = re.sub(r"[^a-z0-9]+", "-", model.rsplit("/", maxsplit=1)[-1].lower()).strip("-")
    made.engine |= {"model": model, "served_names": [short]}


def _hf_token(made: Import, _: str, __: Mapping[str, str], ___: float) -> None:
    made.notes.append(
        "HF_TOKEN is a secret and not printed: put it into the vault, as the credential hf-token"
    )


def _vllm_key(made: Import, _: str, __: Mapping[str, str], ___: float) -> None:
    made.notes.append(
        "VLLM_API_KEY is not needed on one host: engines listen on unix sockets that only the gateway reaches"
    )


def _keys(made: Import, value: str, _: Mapping[str, str], __: float) -> None:
    keys = [key.strip() for key in value.split(",") if key.strip()]
    entries = []
    for number, key in enumerate(keys, 1):
        if key in _WEAK_KEYS:
            made.notes.append(f"GATEWAY_API_KEYS: key {number} is a published example and was left out")
            continue
        digest = hashlib.sha256(key.encode()).hexdigest()
        entries.append({"name": f"imported-{number}", "secrets": [f"sha256:{digest}"]})
    made.variables["llm_keys"] = entries
    made.notes.append("GATEWAY_API_KEYS: only hashes are kept; the keys themselves go on working")


def _parallel(made: Import, value: str, _: Mapping[str, str], __: float) -> None:
    size = int(value)
    made.engine |= {"gpus": list(range(size)), "tensor_parallel_size": size}


def _quantization(made: Import, value: str, _: Mapping[str, str], __: float) -> None:
    method = value.strip().lower()
    if method in ("", "none", "null"):
        made.engine["quantization"] = None
    elif method == "awq":
        made.engine["quantization"] = None
        made.notes.append(
            "QUANTIZATION=awq is left unset: naming awq forces the slow kernel, vLLM reads the method from "
            "the model and takes the fast one"
        )
    else:
        made.engine["quantization"] = method


def _utilization(made: Import, value: str, _: Mapping[str, str], __: float) -> None:
    made.engine["gpu_memory_utilization"] = float(value)
    made.notes.append("GPU_MEMORY_UTILIZATION now includes the memory of CUDA graphs (vLLM 0.21 and newer)")


def _length(made: Import, value: str, _: Mapping[str, str], __: float) -> None:
    made.engine["max_model_len"] = int(value)


def _sequences(made: Import, value: str, _: Mapping[str, str], __: float) -> None:
    made.engine["max_num_seqs"] = int(value)


def _swap(made: Import, value: str, env: Mapping[str, str], memory_gib: float) -> None:
    total = float(value) * int(env.get("TP_SIZE") or 1)
    made.engine["kv_offload_gib"] = total
    if not total:
        return
    made.notes.append(
        f"SWAP_SPACE_GB was per GPU; kv_offload_gib is the total, {total:g} GiB. It holds prefixes and "
        "does not swap: preemption now recomputes. A tier smaller than the GPUs' own KV cache only mirrors it"
    )
    if memory_gib and total > memory_gib / 2:
        made.notes.append(
            f"kv_offload_gib {total:g} is more than half of this machine's {memory_gib:.0f} GiB: lower it, "
            "or check the memory of the host it is meant for"
        )


def _models_dir(made: Import, value: str, _: Mapping[str, str], __: float) -> None:
    made.engine["models_dir"] = value
    made.notes.append("MODEL_CACHE_DIR: the folder must be writable by the user llm-engine")


_HANDLERS: dict[str, Callable[[Import, str, Mapping[str, str], float], None]] = {
    "MODEL_NAME": _model,
    "HF_TOKEN": _hf_token,
    "VLLM_API_KEY": _vllm_key,
    "GATEWAY_API_KEYS": _keys,
    "TP_SIZE": _parallel,
    "QUANTIZATION": _quantization,
    "GPU_MEMORY_UTILIZATION": _utilization,
    "MAX_MODEL_LEN": _length,
    "MAX_NUM_SEQS": _sequences,
    "SWAP_SPACE_GB": _swap,
    "MODEL_CACHE_DIR": _models_dir,
}
_EPILOG = f"""\
known: {", ".join(_HANDLERS)}

example:
  llmctl import-env .env > ansible/inventory/mine/host_vars/HOST.yml
"""
