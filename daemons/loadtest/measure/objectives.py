"""Service level objectives: ``[TYPE: ]METRIC [pNN] <|> VALUE``, as operators write them.

A latency objective also sets the per-request bound for goodput (a request is good when it meets the bounds of
every latency metric that has one), as vllm bench serve and DistServe (arXiv:2401.09670) define it.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from daemons.runtime.settings import Settings

LATENCIES = ("ttft", "itl", "tpot", "e2e", "normalised")
Metric = Literal["ttft", "itl", "tpot", "e2e", "normalised", "errors", "goodput"]
_FORM = re.compile(
    r"^(?:(?P<type>[A-Za-z0-9._-]+)\s*:\s*)?(?P<metric>[a-z0-9]+)(?:\s+p(?P<percentile>\d+(?:\.\d+)?)|\s+(?P<max>max))?"
    r"\s*(?P<sign><=?|>=?)\s*(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>us|ms|s|min|%)?$"
)
_MEETS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "%": 0.01}


class Objective(Settings):
    """One objective. `bound` is in seconds for latencies and a ratio for ``errors`` and ``goodput``."""

    sign: Literal["<", "<=", ">", ">="]

    metric: Metric
    percentile: float | None = None
    bound: float
    type: str | None = None
    """Prompt type it is about; None for all requests together."""

    def __str__(self) -> str:
        prefix = f"{self.type}: " if self.type else ""
        if self.percentile is None:
            return f"{prefix}{self.metric} {self.sign} {self.bound:.2%}"
        point = "max" if self.percentile == 100 else f"p{self.percentile:g}"
        return f"{prefix}{self.metric} {point} {self.sign} {format_seconds(self.bound)}"

    def met_by(self, value: float) -> bool:
        """Whether `value` meets the bound."""
        return bool(_MEETS[self.sign](value, self.bound))


def format_seconds(value: float) -> str:
    """A duration with the unit a person would choose."""
    if value >= 1:
        return f"{value:.4g} s"
    return f"{value * 1e3:.4g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def parse_objective(text: str) -> Objective:
    """Read an objective.

    Raises:
        ValueError: it cannot be understood; the message shows how it is written.
    """
    found = _FORM.match(text.strip())
    if found is None or found["metric"] not in (*LATENCIES, "errors", "goodput"):
        raise ValueError(
            f"objective {text!r}: write it like 'ttft p95 < 500ms', 'chat: e2e p99 < 8s', 'errors < 1%' or "
            f"'goodput > 95%' (metrics: {', '.join(LATENCIES)}, errors, goodput)"
        )
    metric, unit, above = found["metric"], found["unit"], found["sign"].startswith(">")
    if above != (metric == "goodput"):
        raise ValueError(f"objective {text!r}: {metric} takes {'<' if above else '>'}")
    if metric in LATENCIES:
        if unit is None or unit == "%":
            raise ValueError(f"objective {text!r}: give the value a unit (us, ms, s, min)")
        percentile = 100.0 if found["max"] else float(found["percentile"] or 99)
        if not 0 < percentile <= 100:
            raise ValueError(f"objective {text!r}: a percentile lies above 0 and at most at 100")
    else:
        if unit not in {None, "%"} or found["percentile"] or found["max"]:
            raise ValueError(f"objective {text!r}: {metric} is a share, like 1% or 0.01")
        share = float(found["value"]) * _UNITS.get(unit or "", 1.0)
        if (found["sign"], share) in {("<", 0.0), (">", 1.0)}:
            raise ValueError(f"objective {text!r}: no run can meet it; write {found['sign']}=")
        percentile = None
    return Objective.model_validate(
        {
            "metric": metric,
            "sign": found["sign"],
            "percentile": percentile,
            "bound": float(found["value"]) * _UNITS.get(unit or "", 1.0),
            "type": found["type"],
        }
    )


def request_bounds(objectives: Sequence[Objective], type_name: str) -> Mapping[str, float]:
    """The tightest per-request bound of each latency metric for requests of `type_name`, in seconds."""
    bounds: dict[str, float] = {}
    for objective in objectives:
        if objective.metric in LATENCIES and objective.type in {None, type_name}:
            bounds[objective.metric] = min(objective.bound, bounds.get(objective.metric, objective.bound))
    return bounds
