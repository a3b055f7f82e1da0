"""How a plan is shown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from daemons.engine.plan.advice import Advice
from daemons.engine.plan.memory import GIB
from daemons.llmctl.plan.sources import Gpus
from daemons.runtime.cli import counted

_BAR = 60


@dataclass(frozen=True, slots=True)
class Row:
    """The plan for one model; `weights` in bytes."""

    name: str
    quantization: str | None
    weights: int
    advice: Advice


def as_json(row: Row) -> dict[str, Any]:
    """For scripts; sizes in bytes."""
    entry = row.advice.ledger
    sizes = {key: value for key, value in asdict(entry).items() if key != "cache"}
    return {
        "model": row.name,
        "quantization": row.quantization,
        "weights_bytes": row.weights,
        "kv_bytes_per_token": row.advice.kv_bytes_per_token,
        "advice": {key: value for key, value in asdict(row.advice).items() if key != "ledger"},
        "ledger": sizes | {"kv_cache": entry.kv_cache},
    }


def table(rows: Sequence[Row], gpus: Gpus, context: int) -> Table:
    """One line a model: what it needs, and what to configure."""
    made = Table(
        title=f"{counted(gpus.count, 'GPU')} of {gpus.memory / GIB:.1f} GiB, requests of {context} tokens",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    made.add_column("model", no_wrap=True)
    for heading in (
        "weights\nGiB",
        "KiB a\ntoken",
        "GPUs",
        "en-\ngines",
        "KV GiB\na GPU",
        "KV\ntokens",
        "users",
        "max_num\n_seqs",
    ):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        advice = row.advice
        fits = advice.tensor_parallel > 0
        configuration = (
            [
                f"{advice.tensor_parallel}",
                f"{advice.replicas}",
                f"{advice.ledger.kv_cache / GIB:.1f}",
                f"{advice.ledger.tokens(context)}",
                f"{advice.ledger.users(context) * advice.replicas:.1f}",
                f"{advice.max_num_seqs}",
            ]
            if fits
            else ["-", "-", f"{advice.ledger.kv_cache / GIB:.1f}", "-", "-", "-"]
        )
        made.add_row(
            f"{row.name} {row.quantization or ''}".rstrip(),
            f"{row.weights / GIB:.1f}",
            f"{advice.kv_bytes_per_token / 1024:.1f}",
            *configuration,
        )
    return made


def ledger_table(row: Row, context: int) -> Table:
    """Where the memory of one GPU goes."""
    entry = row.advice.ledger
    made = Table(box=box.SIMPLE, show_header=False)
    made.add_column()
    made.add_column(justify="right")
    for name, size in (
        ("memory of one GPU", entry.total),
        ("left free (1 - utilization)", entry.budget - entry.total),
        ("weights", -entry.weights),
        (
            "activations, at their peak" if entry.activation else "activations: in the next line",
            -entry.activation,
        ),
        ("CUDA graphs", -entry.graphs),
        (
            "driver and libraries" if entry.activation else "everything else, as vLLM measured it",
            -entry.other,
        ),
        ("headroom: KV cache", entry.kv_cache),
        (f"a request of {context} tokens", entry.cache.request(context)),
    ):
        if size:
            made.add_row(name, f"{size / GIB:.2f} GiB")
    return made


def bar(advice: Advice) -> str:
    """One GPU as a bar."""
    entry = advice.ledger
    parts = [
        ("#", entry.weights),
        ("a", entry.activation),
        ("g", entry.graphs + entry.other),
        ("k", max(0, entry.kv_cache)),
        (".", entry.total - entry.budget),
    ]
    drawn = "".join(sign * round(_BAR * size / entry.total) for sign, size in parts)
    return f"[{drawn[:_BAR]}]\n # weights  a activations  g graphs and driver  k KV cache  . left free"


def configuration(advice: Advice, context: int, utilization: float) -> str:
    """What to write into an engine's settings for a plan that fits."""
    return (
        "\nfor the engine, in llm_engines of the inventory or in its settings file:\n"
        f"  tensor_parallel_size: {advice.tensor_parallel}\n"
        f"  max_model_len: {context}\n"
        f"  max_num_seqs: {advice.max_num_seqs}\n"
        f"  gpu_memory_utilization: {utilization}"
    )
