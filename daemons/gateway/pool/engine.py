"""An engine as the gateway knows it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import structlog

from daemons.gateway.pool.connections import Dialer
from daemons.runtime.control import EngineReport, EngineState
from daemons.runtime.errors import EXIT_CONFIG, Fatal, describe_os_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemons.gateway.relay.relay import Relay
    from daemons.gateway.settings import EngineSettings

log = structlog.get_logger()

_READY = EngineState.READY
_FAILURES_TO_OPEN = 5
_OPEN_SECONDS = 15.0
_HELD_SECONDS = 10.0
"""For which a request holds its place, as long as none has ended that would tell."""
_WEIGHT = 0.05
"""Of the latest request in the mean: it forgets after about twenty."""


class Engine:
    """State, work in flight and connections of one engine.

    Attributes:
        settings: its entry in the settings file.
        dialer: its connections.
        report: what is known of its state.
        in_flight: requests that hold one of its places.
        relays: their answers.
        drained: an operator keeps requests away from it.
        held_seconds: for which requests hold a place, in the mean.
        trouble: called when a request does not reach it.
        prefix: path under which its API lies, as bytes.
        headers: header lines that every request to it carries.
    """

    def __init__(self, settings: EngineSettings, connect_timeout: float) -> None:
        self.settings = settings
        self.name = settings.name
        self._most = settings.max_in_flight
        try:
            self.dialer = Dialer(settings.url, settings.ca_file, connect_timeout)
        except (OSError, ssl.SSLError) as error:
            raise Fatal(
                f"engines: {settings.name}: ca_file {settings.ca_file}: {error}", EXIT_CONFIG
            ) from None
        self.report = EngineReport(state=EngineState.STARTING, reason="not asked yet")
        self.in_flight = 0
        self.relays: set[Relay] = set()
        self.drained = False
        self.trouble: Callable[[], None] | None = None
        self._failures = 0
        self._open_until = 0.0
        self.held_seconds = _HELD_SECONDS
        self._ended = 0
        self.prefix = self.dialer.prefix.encode()
        self.headers = b"Host: %b\r\nContent-Type: application/json\r\n" % self.dialer.authority.encode()
        key = _engine_key(settings)
        self.authorization = f"Bearer {key}" if key else ""
        if key:
            self.headers += b"Authorization: Bearer %b\r\n" % key.encode()

    @property
    def state(self) -> EngineState:
        """Its state."""
        return self.report.state

    def accepts(self, now: float) -> bool:
        """Whether it would take another request."""
        return self.in_flight < self._most and self.serves(now)

    def serves(self, now: float) -> bool:
        """Whether it answers requests, though perhaps not another one just now."""
        return self.report.state is _READY and not self.drained and now >= self._open_until

    def rests(self, now: float) -> bool:
        """Whether requests are kept away because the latest ones did not reach it."""
        return now < self._open_until

    def held(self, seconds: float) -> None:
        """A request has held a place for so long."""
        self._ended += 1
        self.held_seconds += (seconds - self.held_seconds) * max(_WEIGHT, 1 / self._ended)

    def worked(self) -> None:
        """A request reached it and was answered."""
        self._failures = 0

    def failed(self, now: float) -> None:
        """A request did not reach it, or its connection was lost; after five in a row it rests for 15 s."""
        self._failures += 1
        if self.trouble is not None:
            self.trouble()
        if self._failures >= _FAILURES_TO_OPEN:
            self._failures = 0
            if not self.rests(now):
                log.warning(
                    "engine does not take requests and rests", engine=self.name, seconds=_OPEN_SECONDS
                )
            self._open_until = now + _OPEN_SECONDS

    def oldest_silence(self, now: float) -> float:
        """Seconds since the most silent request in flight heard from it."""
        return max((relay.silence(now) for relay in self.relays), default=0.0)


def _engine_key(settings: EngineSettings) -> str:
    if settings.api_key_file is None:
        return ""
    try:
        key = settings.api_key_file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise Fatal(describe_os_error(error, "read api_key_file"), EXIT_CONFIG) from None
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable() or " " in key:
        raise Fatal(f"{settings.api_key_file}: expected one line with the engine's key", EXIT_CONFIG)
    return key
