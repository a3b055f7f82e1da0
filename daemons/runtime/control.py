"""What an engine supervisor and a gateway tell each other over ``control.sock``.

``GET /state`` is asked by every gateway once a second. The query carries the gateway's own view, since the
engine's counters alone cannot tell a hang from idleness.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class EngineState(StrEnum):
    """The closed vocabulary of engine states."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    SICK = "sick"
    STOPPED = "stopped"


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """The supervisor's answer to ``GET /state``."""

    state: EngineState
    reason: str = ""
    """Why the engine is in this state, one line; empty when ready."""
    generation: int = 0
    """Counts the starts of the engine process: a change means its caches are gone."""
    phase: str = ""
    """Start-up phase, for example ``loading weights``; empty once ready."""
    gpus: tuple[str, ...] = ()
    """UUIDs of the engine's GPUs."""
    own_prompt_tokens: int = 0
    """Tokens that this generation worked on for the supervisor itself, in warm-up and probes."""
    own_completion_tokens: int = 0


class GatewayView(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway says of an engine when it asks for the state."""

    gateway: str
    """Names the gateway process, so that several are told apart."""
    in_flight: int = 0
    """Requests sent to the engine and not yet ended."""
    oldest_silence: float = 0.0
    """Seconds since the last byte of the most silent of them."""

    def to_query(self) -> dict[str, str]:
        """The query parameters of ``GET /state``."""
        return {
            "gateway": self.gateway,
            "in_flight": str(self.in_flight),
            "oldest_silence": f"{self.oldest_silence:.3f}",
        }

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "GatewayView | None":
        """The view in a query; None when nobody says who asks.

        Raises:
            ValueError: a parameter is malformed.
        """
        if "gateway" not in query:
            return None
        return cls(
            gateway=query["gateway"],
            in_flight=int(query.get("in_flight", "0")),
            oldest_silence=float(query.get("oldest_silence", "0")),
        )


def encode_report(report: EngineReport) -> bytes:
    """`report` as JSON."""
    return msgspec.json.encode(report)


def decode_report(data: bytes) -> EngineReport:
    """A report from JSON.

    Raises:
        ValueError: the bytes are no report.
    """
    try:
        return msgspec.json.decode(data, type=EngineReport)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not an engine report: {error}") from error
