"""The gateway's settings file."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from daemons.gateway.policy.bounds import PolicySettings
from daemons.gateway.tenants.bounds import AddressSettings, SharedLimitsSettings
from daemons.runtime import settings
from daemons.runtime.settings import Settings
from daemons.runtime.sockets import Address

Priority = Literal["interactive", "default", "batch"]
"""The classes of service, most urgent first."""

PRIORITIES: tuple[Priority, ...] = ("interactive", "default", "batch")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Bytes = Annotated[int, Field(gt=0)]


class EngineSettings(Settings):
    """An engine behind the gateway."""

    name: Name
    """How logs and metrics name it."""
    url: str
    """``unix:///run/llm/engines/NAME/api.sock``, or ``http(s)://host:port[/prefix]``."""
    models: list[str] = Field(min_length=1)
    """The names under which it serves; several engines may serve the same model."""
    api_key_file: Path | None = None
    """File with the key that the engine asks for, sent as a bearer token."""
    ca_file: Path | None = None
    """Certificate authorities that an ``https`` engine is checked against; the system's by default."""
    max_in_flight: int = Field(default=256, ge=1)
    """Requests sent to it at once; what is more waits in the gateway, where order can still be decided."""
    media_hosts: tuple[str, ...] = ()
    """Hosts from which requests may let this engine fetch media; none by default, only ``data:`` URLs."""

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme == "unix":
            if parts.netloc or not parts.path.startswith("/"):
                raise ValueError(
                    "expected unix:// and an absolute path, as in unix:///run/llm/engines/a/api.sock"
                )
        elif parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("expected unix:///PATH or http(s)://HOST:PORT")
        elif parts.query or parts.fragment or parts.username:
            raise ValueError("expected no user, query or fragment; a key goes into api_key_file")
        return value


class FirstByte(Settings):
    """Seconds from sending a request to an engine until the first byte of its answer, by class."""

    interactive: Seconds = 130.0
    default: Seconds = 150.0
    batch: Seconds = 420.0


class Timeouts(Settings):
    """How long things may take, in seconds."""

    connect: Seconds = 2.0
    """Opening a connection to an engine."""
    first_byte: FirstByte = FirstByte()
    """Waiting for the first byte of an answer."""
    between_chunks: Seconds = 60.0
    """Silence of an engine within an answer."""
    total: Seconds = 1800.0
    """A whole request."""
    request_body: Seconds = 30.0
    """Receiving a request body."""
    idle_connection: Seconds = 75.0
    """A client connection without a request."""
    stalled_reader: Seconds = 60.0
    """A client that does not read."""
    keep_alive: Seconds = 15.0
    """Between SSE comments while a stream has nothing else to send before its first event."""
    drain: Seconds = 120.0
    """For requests in flight when the gateway ends or is replaced."""


class Deadlines(Settings):
    """Seconds a request may wait in the queue, by class."""

    interactive: Seconds = 10.0
    default: Seconds = 30.0
    batch: Seconds = 300.0


class QueueSettings(Settings):
    """The queue in front of the engines."""

    depth: int = Field(default=1024, ge=0)
    """Requests waiting for one model; more are refused with 503."""
    deadlines: Deadlines = Deadlines()
    """How long a request may wait."""


class LimitSettings(Settings):
    """Bounds on what a client may send over HTTP."""

    body_bytes: Bytes = 20 * 1024 * 1024
    """A request body; images travel inside it."""
    bodies_bytes: Bytes = 1024 * 1024 * 1024
    """The bodies over 64 KiB of all requests whose answers have not begun; a key alone may have a quarter."""
    header_bytes: Bytes = 16 * 1024
    """One header line."""
    header_count: int = Field(default=64, ge=8)
    """Header lines of a request."""

    @model_validator(mode="after")
    def _room_for_one(self) -> "LimitSettings":
        if self.bodies_bytes < self.body_bytes:
            raise ValueError("bodies_bytes: must hold at least one body of body_bytes")
        return self


class LedgerSettings(Settings):
    """How long the ledger keeps what."""

    keep_days: int = Field(default=90, ge=1)
    """Days for which every single request is kept; the sums by day, key and model stay for good."""
    reconcile_seconds: float = Field(default=3600.0, gt=0)
    """Between two comparisons of the ledger with the engines' own token counters."""


class CorsSettings(Settings):
    """Cross-origin requests from browsers; off while no origin is named."""

    allowed_origins: tuple[str, ...] = ()
    """Origins such as ``https://chat.example.org``, or ``*``."""
    max_age: int = Field(default=600, ge=0)
    """Seconds for which a browser may remember a preflight's answer."""


class TracingSettings(Settings):
    """OpenTelemetry; off while no collector is named. Needs the optional extra ``otel``."""

    endpoint: str | None = None
    """The collector's URL for OTLP traces over HTTP, as in ``http://127.0.0.1:4318/v1/traces``."""

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://none")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username:
            raise ValueError("expected http(s)://HOST:PORT/v1/traces")
        return value


class DebugSettings(Settings):
    """For finding faults; not for everyday use."""

    log_content_of: tuple[Name, ...] = ()
    """Keys whose prompts and answers are written to the log, 64 KiB of each at most; nobody's by default."""


class GatewaySettings(Settings):
    """``gateway.yaml``."""

    listen: Address = Address(port=8080)
    """Address of the API; unused when systemd hands over a socket named ``http``."""
    metrics: Address = Address(port=9102)
    """Address of the metrics; unused when systemd hands over a socket named ``metrics``."""
    keys: Path = Path("keys.d")
    """Folder of key files; a relative path is relative to this file."""
    ledger: Path = Path("ledger.db")
    """The ledger of what every key used; a relative path is relative to this file."""
    accounting: LedgerSettings = LedgerSettings()
    admin: Path | None = None
    """Admin socket; by default ``admin.sock`` in ``$RUNTIME_DIRECTORY``, else none."""
    engines: list[EngineSettings] = Field(min_length=1)
    """The engines."""
    ready_wait: Seconds = 30.0
    """How long ``/ready`` waits for an engine, in seconds."""
    timeouts: Timeouts = Timeouts()
    queue: QueueSettings = QueueSettings()
    limits: LimitSettings = LimitSettings()
    addresses: AddressSettings = AddressSettings()
    shared_limits: SharedLimitsSettings | None = None
    """Where several gateways share the limits of keys and addresses; by default each has its own."""
    cors: CorsSettings = CorsSettings()
    policy: PolicySettings = PolicySettings()
    tracing: TracingSettings = TracingSettings()
    debug: DebugSettings = DebugSettings()

    @model_validator(mode="after")
    def _unique_engines(self) -> "GatewaySettings":
        names = [engine.name for engine in self.engines]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"engines: two engines are named {twice[0]!r}; names must differ")
        return self


def load(path: Path) -> GatewaySettings:
    """Read ``gateway.yaml``; relative paths become relative to its folder.

    Raises:
        ConfigError: with every fault.
    """
    raw = settings.load(path, GatewaySettings)
    base = path.resolve().parent

    def absolute(given: Path | None) -> Path | None:
        return None if given is None else base / given

    engines = [
        engine.model_copy(
            update={"api_key_file": absolute(engine.api_key_file), "ca_file": absolute(engine.ca_file)}
        )
        for engine in raw.engines
    ]
    return raw.model_copy(
        update={
            "keys": base / raw.keys,
            "ledger": base / raw.ledger,
            "admin": absolute(raw.admin),
            "engines": engines,
        }
    )
