"""Reads vLLM's log: levels of its lines, and how far a start has come."""

import re
from dataclasses import dataclass

_LINE = re.compile(
    r"(?:\((?P<process>\w+)[^)]*pid=\d+\)\s*)?"
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)"
    r"(?:\s+\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?\s+\[[^\]]*\]\s?|:\s+)(?P<text>.*)"
)
_PREFIX = re.compile(r"\((?P<process>\w+)[^)]*pid=\d+\)\s?(?P<text>.*)")

STARTING = "starting vLLM"
SERVING = "starting the server"
WARMING_UP = "warming up"

# In the order in which a start passes them; what one version omits is simply skipped.
_PHASES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (STARTING, re.compile(r"vLLM API server version|non-default args")),
    ("initialising the engine", re.compile(r"Initializing an? (?:V\d )?(?:LLM )?engine")),
    ("loading weights", re.compile(r"Starting to load model|Loading safetensors checkpoint shards")),
    ("weights loaded", re.compile(r"Loading weights took|Model loading took|Loading model weights took")),
    (
        "compiling",
        re.compile(
            r"Using cache directory|Dynamo bytecode transform|Compiling a graph|Directly load the compiled"
        ),
    ),
    (
        "sizing the KV cache",
        re.compile(r"Available KV cache memory|KV cache size|Maximum concurrency|# (?:GPU|CUDA|CPU) blocks"),
    ),
    (
        "capturing CUDA graphs",
        re.compile(r"Capturing CUDA graphs?|Graph capturing finished|Capturing the model for CUDA graphs"),
    ),
    ("engine initialised", re.compile(r"[Ii]nit engine .* took")),
    (SERVING, re.compile(r"Starting vLLM (?:API )?server|Available routes are|Started server process")),
)
PHASES = (*(name for name, _ in _PHASES), WARMING_UP)
"""Every phase of a start, in order."""

_CORE_DEAD = re.compile(r"EngineDeadError|engine core exited unexpectedly|EngineCore died unexpectedly")

_SHARDS = re.compile(r"Loading [\w.-]* ?checkpoint shards:\s+(\d+)%")
_CAPTURE = re.compile(r"Capturing (?:CUDA graphs?|cudagraphs?)[^:]*:\s+(\d+)%")


_WEIGHTS = re.compile(r"Model loading took ([\d.]+) Gi?B")
_KV_CACHE = re.compile(r"Available KV cache memory: ([\d.]+) GiB")
_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


@dataclass(slots=True)
class Figures:
    """What vLLM says of its memory during a start, of one GPU; None until it says it."""

    weights_gib: float | None = None
    kv_cache_gib: float | None = None
    tokens: int | None = None

    def feed(self, text: str) -> None:
        """Take in a line. With several ranks the one that has least room decides."""
        if found := _WEIGHTS.search(text):
            self.weights_gib = max(self.weights_gib or 0.0, float(found[1]))
        elif found := _KV_CACHE.search(text):
            said = float(found[1])
            self.kv_cache_gib = said if self.kv_cache_gib is None else min(self.kv_cache_gib, said)
        elif found := _TOKENS.search(text):
            self.tokens = int(found[1].replace(",", ""))


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of vLLM's output.

    Attributes:
        level: ``debug`` … ``critical``; ``info`` where the line names none.
        process: vLLM's name of the process that wrote it, for example ``EngineCore``; may be empty.
        text: the message.
    """

    level: str
    process: str
    text: str


def parse_line(raw: str) -> LogLine:
    """Take a raw line of output apart; never fails."""
    found = _LINE.fullmatch(raw)
    if found:
        level = "debug" if found["text"].startswith("Route: ") else found["level"].lower()
        return LogLine(level, found["process"] or "", found["text"])
    found = _PREFIX.fullmatch(raw)
    if found:
        return LogLine("info", found["process"], found["text"])
    return LogLine("info", "", raw)


def tells_death(text: str) -> bool:
    """Whether a message says that vLLM's core is dead: the API server follows it only seconds later."""
    return _CORE_DEAD.search(text) is not None


class PhaseTracker:
    """Follows a start through vLLM's log.

    Attributes:
        phase: the phase the start is in.
        percent: how much of the phase is done, where vLLM says so.
    """

    def __init__(self) -> None:
        self.phase = STARTING
        self.percent: int | None = None
        self._index = 0

    def feed(self, text: str) -> bool:
        """Take in a line; whether the phase or its percentage changed. A phase never goes back."""
        before = (self.phase, self.percent)
        for index in range(len(_PHASES) - 1, self._index, -1):
            if _PHASES[index][1].search(text):
                self._index, self.phase, self.percent = index, _PHASES[index][0], None
                break
        shown = _SHARDS.search(text) or _CAPTURE.search(text)
        if shown:
            self.percent = int(shown.group(1))
        return (self.phase, self.percent) != before

    def __str__(self) -> str:
        return self.phase if self.percent is None else f"{self.phase} {self.percent} %"
