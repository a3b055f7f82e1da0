"""The typed description of a load test. Times are in seconds, rates in sessions a second, lengths in tokens.

The target's address is not part of it on purpose: it is named on the command line, each time.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from daemons.loadtest.measure.objectives import Objective, parse_objective
from daemons.runtime.settings import Settings

_DURATION = 60.0
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")


class _Part(Settings):
    """Settings whose numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class Length(_Part):
    """A token count, normally distributed and clipped; written as ``100``, ``50..200`` or a mapping."""

    mean: float = Field(gt=0)
    stddev: float = Field(default=0, ge=0)
    min: PositiveInt = 1
    max: PositiveInt = 1_000_000
    uniform: bool = False
    """Draw evenly from `min` to `max` instead."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        if isinstance(value, int):
            return {"mean": value}
        if isinstance(value, str):
            found = _RANGE.match(value)
            if found is None:
                raise ValueError("expected a number, LOW..HIGH, or a mapping with mean and stddev")
            low, high = int(found[1]), int(found[2])
            return {"mean": (low + high) / 2, "min": low, "max": high, "uniform": True}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> "Length":
        if self.min > self.max:
            raise ValueError("min is above max")
        return self


class Cancel(_Part):
    """Clients that leave before the answer is complete."""

    fraction: float = Field(gt=0, le=1)
    after_tokens: PositiveInt = 8
    """Streamed events after which the client leaves."""


class SlowReader(_Part):
    """Clients that read slower than the server sends."""

    fraction: float = Field(gt=0, le=1)
    bytes_per_second: PositiveInt = 2_000


class PromptType(_Part):
    """One kind of request in the mix."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9._-]+$")
    weight: PositiveFloat = 1.0
    endpoint: Literal["chat", "completions", "embeddings"] = "chat"
    model: str | None = None
    """Overrides the plan's model."""
    prompt_tokens: Length = Length(mean=128)
    """Approximate: a common English word counts as one token. The report says what the server counted."""
    output_tokens: Length = Length(mean=128)
    stream: bool = True
    ignore_eos: bool = False
    """Ask vLLM to generate to the limit whatever the model wants."""
    shared_prefix_tokens: int = Field(default=0, ge=0)
    """Leading part of the prompt that requests of one prefix group have in common."""
    prefix_groups: PositiveInt = 1
    cancel: Cancel | None = None
    slow_reader: SlowReader | None = None

    @model_validator(mode="after")
    def _cancelled_while_streaming(self) -> "PromptType":
        if self.cancel is not None and (not self.stream or self.endpoint == "embeddings"):
            raise ValueError("cancel needs a streamed answer: it counts events")
        return self


STAGGER = 1.0
"""Seconds over which the clients of a closed loop begin: all at once would measure a stampede."""


class Closed(_Part):
    """A fixed number of clients, each sending its next request when the last one ended."""

    shape: Literal["closed"] = "closed"
    concurrency: PositiveInt = 8
    think_time: float = Field(default=0, ge=0)


class _Open(_Part):
    concurrency: PositiveInt | None = None
    """At most so many in flight; what is due meanwhile waits in the client, and that wait counts."""


class Constant(_Open):
    """Evenly spaced arrivals."""

    shape: Literal["constant"] = "constant"
    rate: PositiveFloat


class Poisson(_Open):
    """Independent arrivals: exponential gaps."""

    shape: Literal["poisson"] = "poisson"
    rate: PositiveFloat


class Gamma(_Open):
    """Gamma-distributed gaps; burstiness below 1 clusters arrivals, 1 is Poisson (as in vllm bench serve)."""

    shape: Literal["gamma"] = "gamma"
    rate: PositiveFloat
    burstiness: PositiveFloat = 0.25


class Ramp(_Open):
    """A Poisson process whose rate changes linearly over the duration."""

    shape: Literal["ramp"] = "ramp"
    from_rate: float = Field(default=0, ge=0)
    to_rate: PositiveFloat


class Step(_Part):
    """One step of `Steps`."""

    rate: PositiveFloat
    seconds: PositiveFloat


class Steps(_Open):
    """Poisson arrivals whose rate changes in steps; the report has figures for each."""

    shape: Literal["steps"] = "steps"
    steps: tuple[Step, ...] = Field(min_length=1)


class Trace(_Open):
    """Replay of recorded arrivals and lengths, or of recorded conversations."""

    shape: Literal["trace"] = "trace"
    file: Path
    format: Literal["auto", "burstgpt", "azure", "mooncake", "sharegpt"] = "auto"
    speed: PositiveFloat = 1.0
    """2 replays twice as fast."""
    rate: PositiveFloat | None = None
    """ShareGPT has no times: conversations arrive as a Poisson process of this rate."""
    ignore_eos: bool = True
    """Generate exactly the recorded length."""


Load = Annotated[Closed | Constant | Poisson | Gamma | Ramp | Steps | Trace, Field(discriminator="shape")]


class Key(_Part):
    """An API key of the target; the secret stays in its file."""

    name: str = Field(min_length=1, max_length=40)
    file: Path
    weight: PositiveFloat = 1.0


class Budget(_Part):
    """Hard limits of one run or capacity search; reaching one ends it in an orderly way."""

    requests: int = Field(default=1_000_000, ge=0)
    tokens: int = Field(default=100_000_000, ge=0)
    """Prompt and output tokens, what is in flight counted with its limit."""

    def less(self, requests: int, tokens: int) -> "Budget":
        """What is left of it."""
        return Budget(requests=max(0, self.requests - requests), tokens=max(0, self.tokens - tokens))


class Timeouts(_Part):
    """When a request counts as failed."""

    connect: PositiveFloat = 5.0
    total: PositiveFloat = 600.0
    stall: PositiveFloat = 60.0
    """Silence in the middle of an answer."""
    drain: PositiveFloat = 60.0
    """How long requests in flight may still run after the last one was sent."""


DEFAULT_MIX = (
    PromptType(
        name="chat-short",
        weight=5,
        prompt_tokens=Length(mean=60, stddev=20, min=10),
        output_tokens=Length(mean=64, stddev=24, min=8),
    ),
    PromptType(
        name="chat-long",
        weight=2,
        prompt_tokens=Length(mean=500, stddev=100, min=100, max=700),
        output_tokens=Length(mean=96, stddev=32, min=8),
    ),
    PromptType(
        name="code",
        weight=2,
        prompt_tokens=Length(mean=200, stddev=60, min=40),
        output_tokens=Length(mean=160, stddev=48, min=16),
    ),
    PromptType(
        name="shared-prefix",
        weight=1,
        prompt_tokens=Length(mean=450, stddev=20, min=400),
        shared_prefix_tokens=384,
        prefix_groups=4,
        output_tokens=Length(mean=48, stddev=16, min=8),
    ),
)
"""Small enough for a context of 1,024 tokens."""


class Plan(_Part):
    """A load test."""

    model: str | None = None
    """Model name to ask for; by default the first that the server lists."""
    load: Load = Closed()
    duration: PositiveFloat | None = None
    """Seconds of sending: 60 by default; a trace and steps end by themselves, or when this says so."""
    requests: PositiveInt | None = None
    """Send exactly so many instead of sending for `duration`."""
    mix: tuple[PromptType, ...] = Field(default=DEFAULT_MIX, min_length=1)
    keys: tuple[Key, ...] = ()
    objectives: tuple[Objective, ...] = ()
    """For example ``ttft p95 < 500ms``, ``chat-short: e2e p99 < 8s``, ``errors < 1%``, ``goodput > 95%``."""
    warmup: float | None = Field(default=None, ge=0)
    """Seconds at the start that are left out; by default detected."""
    budget: Budget = Budget()
    timeouts: Timeouts = Timeouts()
    max_lag: PositiveFloat = 0.010
    """A P99 of the generator's own lag above this invalidates the run."""
    seed: int = 0

    @field_validator("objectives", mode="before")
    @classmethod
    def _parsed(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        return [parse_objective(item) if isinstance(item, str) else item for item in value]

    @model_validator(mode="after")
    def _distinct(self) -> "Plan":
        for what, names in (
            ("prompt types", [t.name for t in self.mix]),
            ("keys", [k.name for k in self.keys]),
        ):
            if len(names) != len(set(names)):
                raise ValueError(f"two {what} have the same name")
        known = {t.name for t in self.mix}
        for objective in self.objectives:
            if objective.type is not None and objective.type not in known and self.load.shape != "trace":
                raise ValueError(f"objective {str(objective)!r}: there is no prompt type {objective.type!r}")
        return self

    @model_validator(mode="after")
    def _something_left(self) -> "Plan":
        planned = self.sending_seconds
        if self.warmup is not None and planned is not None and self.warmup >= planned:
            raise ValueError(f"warmup ({self.warmup:g} s) leaves nothing of the {planned:g} s of the run")
        return self

    @property
    def stationary(self) -> bool:
        """Whether the load is the same throughout, so that a steady state can be expected."""
        return self.load.shape in {"closed", "constant", "poisson", "gamma"}

    @property
    def seconds(self) -> float:
        """Seconds of sending of a load that does not end by itself."""
        return self.duration if self.duration is not None else _DURATION

    @property
    def sending_seconds(self) -> float | None:
        """Seconds of sending, where the plan says them."""
        if self.requests is not None or isinstance(self.load, Trace):
            return None
        if isinstance(self.load, Steps):
            whole = sum(step.seconds for step in self.load.steps)
            return min(whole, self.duration or whole)
        return self.seconds
