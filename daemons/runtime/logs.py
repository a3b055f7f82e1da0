"""Structured logs: journal fields under systemd, JSON lines elsewhere, colours on a terminal.

Every record goes through one redaction step: a secret that reaches a logger by mistake is not rendered.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping
from itertools import compress
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec
import structlog
from pydantic import SecretStr

from daemons.runtime.errors import EXIT_CONFIG, Fatal

_JOURNAL_PATIENCE_SEC = 0.05

Event = MutableMapping[str, Any]

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
LEVELS = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Level names and their syslog priorities."""

_SECRET_KEYS = re.compile(r"(?i)(^|[-_])(authorization|api[-_]?key|password|secret|token|credential)$")
_SECRET_VALUES = re.compile(r"(?i)\b(bearer\s+)[^\s\"',]+|\b(sk-|hf_)[A-Za-z0-9_\-]{6,}")
_REDACTED = "[redacted]"


class _Sink(Protocol):
    def write(self, record: bytes) -> None: ...


class _StreamSink:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, record: bytes) -> None:
        # A reader that is gone (closed pipe, full disk behind a redirect) must never end the daemon, and the
        # descriptor of a closed stream may be another file's by now.
        with contextlib.suppress(OSError, ValueError):
            os.write(self._stream.fileno(), record + b"\n")


class _JournalSink:
    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(_JOURNAL_PATIENCE_SEC)

    def __del__(self) -> None:
        self._socket.close()

    def write(self, record: bytes) -> None:
        try:
            self._socket.sendto(record, self._path)
            self._socket.settimeout(_JOURNAL_PATIENCE_SEC)
        except (TimeoutError, BlockingIOError):
            # A journal that hangs must not hang the daemon: records are lost until it takes them again.
            self._socket.settimeout(0)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                with contextlib.suppress(OSError):
                    self._send_as_file(record)

    def _send_as_file(self, record: bytes) -> None:
        # A record larger than a datagram goes as a sealed memfd (systemd.io, native journal protocol).
        fd = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(fd, record)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as once:
                once.settimeout(_JOURNAL_PATIENCE_SEC)
                once.connect(self._path)
                socket.send_fds(once, [b""], [fd])
        finally:
            os.close(fd)


class _Logger:
    """The innermost structlog logger: every level is one write."""

    def __init__(self, sink: _Sink) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = sink.write


class _Forward(logging.Handler):
    """Carries records of the standard library's loggers (aiohttp, asyncio) into structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        write = (
            structlog.get_logger().error
            if record.levelno >= logging.ERROR
            else structlog.get_logger().warning
        )
        try:
            write(record.getMessage(), logger=record.name, exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 - logging must never break what it reports on (logging.Handler.handle)
            self.handleError(record)


def configure(service: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Set up logging for this process.

    Args:
        service: the daemon's name, for example ``llm-gateway``; ``SYSLOG_IDENTIFIER`` in the journal.
        level: one of `LEVELS`.
        stream: where lines go when the journal does not take them; standard error by default.

    Raises:
        Fatal: there is no such level.
    """
    if level not in LEVELS:
        raise Fatal(f"no log level is called {level!r}: {', '.join(LEVELS)}", EXIT_CONFIG)
    stream = stream or sys.stderr
    renderer, sink = _output(service, stream)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _render_exception,
            _redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: _Logger(sink),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def _output(service: str, stream: TextIO) -> tuple[Any, _Sink]:
    if _is_journal(stream):
        return _JournalRenderer(service), _JournalSink(JOURNAL_SOCKET)
    if stream.isatty():
        return _ConsoleRenderer(service, "NO_COLOR" not in os.environ), _StreamSink(stream)
    return _JsonRenderer(service), _StreamSink(stream)


class Records:
    """Writes records of one kind at little cost: no processors, no redaction, several to a write.

    For records that a daemon makes for every request out of values it knows to be safe. They reach the
    output with the next `flush`, where lines of level ``info`` are written at all.
    """

    def __init__(self, service: str, event: str, stream: TextIO | None = None) -> None:
        renderer, self._sink = _output(service, stream or sys.stderr)
        self._wanted: bool = structlog.get_logger().is_enabled_for(logging.INFO)
        self._render = _for_records(renderer, event) or self._line
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        self._middle = self._encode({"level": "info", "service": service, "event": event})[1:-1]
        self._second = 0
        self._begun = b""
        self._waiting: list[bytes] = []

    def add(self, record: msgspec.Struct) -> bool:
        """Take `record` for the next `flush`; whether it is the first since the last one."""
        if not self._wanted:
            return False
        self._waiting.append(self._render(record))
        return len(self._waiting) == 1

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        if isinstance(self._sink, _StreamSink):
            if waiting:
                self._sink.write(b"\n".join(waiting))
        else:
            for record in waiting:
                self._sink.write(record)

    def _line(self, record: msgspec.Struct) -> bytes:
        second, millis = divmod(int(time.time() * 1000), 1000)
        if second != self._second:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
            self._second, self._begun = second, b'{"time":"%b.' % stamp
        return b'%b%03dZ",%b,%b' % (self._begun, millis, self._middle, self._encode(record)[1:])


def _for_records(renderer: Any, event: str) -> Callable[[msgspec.Struct], bytes] | None:
    """What renders records as `renderer` renders events; None for JSON, which needs nothing more."""
    if isinstance(renderer, _JsonRenderer):
        return None
    if isinstance(renderer, _JournalRenderer):
        return _JournalRecords(renderer, event)
    return lambda record: renderer(None, "info", _event_of(event, record))


def _event_of(event: str, record: msgspec.Struct) -> Event:
    return {"level": "info", "event": event, **msgspec.structs.asdict(record)}


def _is_journal(stream: TextIO) -> bool:
    """Whether `stream` is the journal's own (``$JOURNAL_STREAM`` is ``device:inode``, systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def _render_exception(_: Any, __: str, event: Event) -> Event:
    exc_info = event.pop("exc_info", None)
    if exc_info is True:
        exc_info = sys.exc_info()
    elif isinstance(exc_info, BaseException):
        exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
    if exc_info and exc_info[0] is not None:
        event["exception"] = "".join(traceback.format_exception(*exc_info)).rstrip()
    return event


def redact(text: str) -> str:
    """`text` with bearer tokens and key-like words replaced."""
    return _SECRET_VALUES.sub(lambda m: (m.group(1) or m.group(2)) + _REDACTED, text)


def _redact(_: Any, __: str, event: Event) -> Event:
    for key, value in event.items():
        event[key] = _REDACTED if _SECRET_KEYS.search(key) else _clean(value)
    return event


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        # A lone surrogate (an undecodable byte of a path) cannot be encoded by any renderer.
        return redact(value.encode("utf-8", "replace").decode())
    if isinstance(value, SecretStr):
        return _REDACTED
    if isinstance(value, dict):
        return {k: _REDACTED if _SECRET_KEYS.search(str(k)) else _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


class _JsonRenderer:
    def __init__(self, service: str) -> None:
        self._service = service
        self._stamp = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def __call__(self, logger: Any, name: str, event: Event) -> bytes:
        event = self._stamp(logger, name, event)
        head = {"time": event.pop("time"), "level": event.pop("level"), "service": self._service}
        return self._encoder.encode(head | dict(event))


class _ConsoleRenderer:
    def __init__(self, service: str, colors: bool) -> None:
        self._service = service
        self._stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        self._render = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0)

    def __call__(self, logger: Any, name: str, event: Event) -> bytes:
        event = self._stamp(logger, name, event)
        event["event"] = f"{self._service}: {event.get('event', '')}"
        return self._render(logger, name, event).encode(errors="replace")


class _JournalRenderer:
    """A record in the journal's native protocol; each key becomes a field that ``journalctl`` can match."""

    _INVALID = re.compile(r"[^A-Z0-9_]")

    def __init__(self, service: str) -> None:
        self.service = service

    def __call__(self, _: Any, __: str, event: Event) -> bytes:
        level, text = event.pop("level"), str(event.pop("event", ""))
        exception = event.pop("exception", None)
        details = "".join(f" {k}={_plain(v)}" for k, v in event.items())
        fields = {
            "MESSAGE": text + details + (f"\n{exception}" if exception else ""),
            "PRIORITY": str(LEVELS.get(level, 6)),
            "SYSLOG_IDENTIFIER": self.service,
        }
        for key, value in event.items():
            fields.setdefault(self.name_of(key), _plain(value))
        return b"".join(_journal_field(k, v) for k, v in fields.items())

    def name_of(self, key: str) -> str:
        """The field's name for a key."""
        return self._INVALID.sub("_", key.upper()).lstrip("_0123456789") or "FIELD"


class _JournalRecords:
    """Renders records of one kind as `_JournalRenderer` does, at a fifth of its cost.

    The values go into the gaps of a datagram that is laid out once.
    """

    def __init__(self, renderer: _JournalRenderer, event: str) -> None:
        self._render = renderer
        self._event = event
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        self._kind: type[msgspec.Struct] | None = None
        self._layout: list[str] = []
        self._lines = 0
        self._first: list[bool] = []

    def __call__(self, record: msgspec.Struct) -> bytes:
        if type(record) is not self._kind:
            self._lay_out(type(record))
        values = msgspec.structs.astuple(record)
        others = [value for value in values if type(value) is not str]
        rendered = self._encode(others)[1:-1].decode().split(",")
        if len(rendered) == len(others):
            following = iter(rendered)
            texts = [value if type(value) is str else next(following) for value in values]
            parts = self._layout.copy()
            parts[1::2] = [*texts, *compress(texts, self._first)]
            datagram = "".join(parts)
            if datagram.count("\n") == self._lines:
                return datagram.encode("utf-8", "replace")
        # A value of several lines, or none that is a single one.
        return self._render(None, "info", _event_of(self._event, record))

    def _lay_out(self, kind: type[msgspec.Struct]) -> None:
        keys = kind.__struct_fields__
        names = [self._render.name_of(key) for key in keys]
        taken = ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", *names]
        # Of fields that share a name, the first one is it.
        self._first = [name not in taken[: place + 3] for place, name in enumerate(names)]
        fixed = f"\nPRIORITY={LEVELS['info']}\nSYSLOG_IDENTIFIER={self._render.service}\n"
        before = [f" {key}=" for key in keys]
        before += [f"\n{name}=" for name in compress(names, self._first)]
        before[0] = f"MESSAGE={self._event}{before[0]}"
        before[len(keys)] = fixed + before[len(keys)].removeprefix("\n")
        self._layout = [part for text in before for part in (text, "")]
        self._layout.append("\n")
        self._lines = "".join(self._layout).count("\n")
        self._kind = kind


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
