"""What the conducting process and the generator say to each other: msgpack, length-prefixed, on pipes."""

from collections.abc import Callable
from typing import Literal

import msgspec

from daemons.loadtest.client.connection import Target


class Order(msgspec.Struct, kw_only=True):
    """What the generator is to do; the first message to it. Holds secrets: only ever on a pipe."""

    target: Target
    plan: str
    """`Plan` as JSON."""
    model: str
    secrets: list[str]
    nonce: str


class Ready(msgspec.Struct, tag="ready", kw_only=True):
    """The workload is loaded and begins now."""

    types: list[str]
    epoch: float
    """Unix time of the run's start."""
    notes: list[str] = []
    """What is to be known about the workload."""


class Progress(msgspec.Struct, tag="progress", kw_only=True):
    """Sent several times a second: where the generator stands, and what has finished since."""

    at: float
    """Seconds since the start."""
    in_flight: int
    backlog: int
    """Due, but waiting for a free client."""
    sent: int
    tokens: float
    """Output tokens that have come, those of unfinished streams estimated from their events."""
    cpu_seconds: float
    loop_lags: bytes
    """How late the event loop ran its regular probe, seconds, as an array of floats."""
    records: dict[str, bytes]
    reasons: dict[str, str] = {}
    """By outcome, the first reason that was given for it, where it is new."""


StopReason = Literal["complete", "asked", "requests budget", "tokens budget", "target died"]


class Finished(msgspec.Struct, tag="finished", kw_only=True):
    """The last message."""

    reason: StopReason
    sending_ended: float
    """Seconds since the start when the last request was sent."""
    ended: float
    used_tokens: int
    """Prompt and output tokens as the budget counted them."""


class Failed(msgspec.Struct, tag="failed", kw_only=True):
    """The generator cannot run; also a last message."""

    message: str
    exit_code: int


Report = Ready | Progress | Finished | Failed
Command = Literal["drain", "cut"]
_HEADER = 4
_encoder = msgspec.msgpack.Encoder()
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)
_orders = msgspec.msgpack.Decoder(Order)


def encode(message: Order | Report | Command) -> bytes:
    """A frame."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_HEADER, "big") + body


def decode_report(body: bytes) -> Report:
    """A frame's body as the generator's report."""
    return _reports.decode(body)


def decode_order(body: bytes) -> Order:
    """A frame's body as an order."""
    return _orders.decode(body)


class FrameBuffer:
    """Collects bytes from a pipe into frames and hands each frame's body to `deliver`."""

    def __init__(self, deliver: Callable[[bytes], None]) -> None:
        self._held = bytearray()
        self._deliver = deliver

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self._held += data
        while len(self._held) >= _HEADER:
            end = _HEADER + int.from_bytes(self._held[:_HEADER], "big")
            if len(self._held) < end:
                return
            body = bytes(self._held[_HEADER:end])
            del self._held[:end]
            self._deliver(body)
