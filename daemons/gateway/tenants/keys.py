"""Key files: who may use the gateway, with hashed secrets, watched for change.

A change is taken over whole or, where a file is broken, not at all: the last good state of that file stays in
force and the fault is reported.
"""

import datetime as dt
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field, model_validator

from daemons.gateway.settings import Name, Priority
from daemons.gateway.tenants.bounds import Bounds, Network
from daemons.gateway.tenants.rate_lines import RateLines
from daemons.runtime import settings
from daemons.runtime.settings import ConfigError, Fault, Settings

log = structlog.get_logger()

Hash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class SecretSettings(Settings):
    """A secret that ends."""

    hash: Hash
    """``sha256:`` and the hexadecimal SHA-256 of the key."""
    expires: dt.datetime | None = None
    """When it ceases to work."""


class KeySettings(Settings):
    """``keys.d/NAME.yaml``."""

    name: Name
    """The key's alias in logs, metrics and the ledger."""
    secrets: list[Hash | SecretSettings] = Field(min_length=1)
    """Hashed secrets; two are live during a rotation."""
    models: tuple[str, ...] = ("*",)
    """Models it may use; ``*`` is all."""
    priority: Priority = Field(default="default", alias="class")
    """interactive, default or batch."""
    limits: Bounds = Bounds()
    """What the key may use."""
    expires: dt.datetime | None = None
    """When the key as a whole ceases to work."""
    disabled: bool = False
    networks: tuple[Network, ...] = ()
    """Networks it may be used from; none named means all."""
    cache_group: Name | None = None
    """Keys of one group share the engines' prefix caches; by default each key has its own."""

    @model_validator(mode="after")
    def _aware(self) -> "KeySettings":
        dates = [self.expires, *(s.expires for s in self.secrets if isinstance(s, SecretSettings))]
        if any(date is not None and date.tzinfo is None for date in dates):
            raise ValueError("expires: expected a time with its zone, as in 2027-01-31T00:00:00Z")
        return self


@dataclass(frozen=True, slots=True)
class Tenant:
    """An authenticated key.

    Attributes:
        alias: its name.
        priority: its class.
        models: models it may use; None is all.
        networks: networks it may come from; empty is all.
        limits: what it may use.
        expires: POSIX time at which it ceases to work; None is never.
        cache_group: name under which its prefix cache is kept.
        rate_lines: header lines that tell where it stands.
    """

    alias: str
    priority: Priority
    models: frozenset[str] | None
    networks: tuple[Network, ...]
    limits: Bounds
    expires: float | None
    cache_group: str
    rate_lines: RateLines = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate_lines", RateLines(self.limits))


@dataclass(frozen=True, slots=True)
class _Secret:
    digest: bytes
    expires: float | None
    tenant: Tenant | None


_NOBODYS = _Secret(sha256(b"").digest(), None, None)


class KeyRing:
    """The keys in force, by the digest of their secrets.

    Attributes:
        aliases: names of all keys, disabled ones included.
        limits: what each may use, by alias.
    """

    def __init__(self) -> None:
        self._secrets: dict[bytes, _Secret] = {}
        self.aliases: frozenset[str] = frozenset()
        self.limits: dict[str, Bounds] = {}

    def replace(self, keys: Iterable[KeySettings]) -> None:
        """Put `keys` in force."""
        secrets: dict[bytes, _Secret] = {}
        limits = {}
        for key in keys:
            limits[key.name] = key.limits
            if not key.disabled:
                secrets.update({secret.digest: secret for secret in _secrets_of(key)})
        self._secrets, self.aliases, self.limits = secrets, frozenset(limits), limits

    def find(self, presented: bytes, now: float) -> Tenant | None:
        """The tenant of a presented key at POSIX time `now`; an unknown key costs the same as a known one."""
        digest = sha256(presented).digest()
        secret = self._secrets.get(digest, _NOBODYS)
        if not hmac.compare_digest(digest, secret.digest):
            return None
        if secret.expires is not None and now >= secret.expires:
            return None
        return secret.tenant


def _secrets_of(key: KeySettings) -> Iterable[_Secret]:
    expires = key.expires.timestamp() if key.expires else None
    tenant = Tenant(
        alias=key.name,
        priority=key.priority,
        models=None if "*" in key.models else frozenset(key.models),
        networks=key.networks,
        limits=key.limits,
        expires=expires,
        cache_group=key.cache_group or key.name,
    )
    for given in key.secrets:
        secret = given if isinstance(given, SecretSettings) else SecretSettings(hash=given)
        ends = [e for e in (expires, secret.expires.timestamp() if secret.expires else None) if e is not None]
        yield _Secret(bytes.fromhex(secret.hash.partition(":")[2]), min(ends, default=None), tenant)


class KeyFolder:
    """Reads ``keys.d`` and notices changes by modification time, which works in every sandbox.

    Files go by their names: a path for each would make looking for changes three times as dear.
    """

    def __init__(self, folder: Path, ring: KeyRing) -> None:
        self._folder = folder
        self._ring = ring
        self._good: dict[str, KeySettings] = {}
        self._stamps: dict[str, tuple[int, int, int]] = {}
        self._refused: set[str] = set()

    def check(self) -> list[KeySettings]:
        """Every key in the folder.

        Raises:
            ConfigError: with the faults of every file.
        """
        keys, faults = self._read(self._scan())
        if faults:
            raise ConfigError(faults)
        return list(keys.values())

    def refresh(self) -> bool:
        """Take over what has changed since the last call; whether anything has."""
        stamps = self._scan()
        if stamps == self._stamps:
            return False
        # A refused file may be right now without a change of its own: the file that had its name has gone.
        stale = [n for n, stamp in stamps.items() if n in self._refused or self._stamps.get(n) != stamp]
        self._stamps = stamps
        keys, faults = self._read(stale)
        self._refused = set(stale) - set(keys)
        for fault in faults:
            log.error("key file refused, the last good state stays in force", fault=str(fault))
        self._good = {name: key for name, key in (self._good | keys).items() if name in stamps}
        self._ring.replace(self._good.values())
        log.info("keys in force", keys=len(self._good), folder=str(self._folder))
        return True

    def _scan(self) -> dict[str, tuple[int, int, int]]:
        stamps = {}
        try:
            with os.scandir(self._folder) as entries:
                files = [e for e in entries if e.name.endswith(".yaml") and e.name[0] != "."]
        except OSError:
            # A folder that is being replaced must not lock everybody out.
            return dict(self._stamps)
        for file in files:
            try:
                status = file.stat()
            except OSError:
                continue
            stamps[file.name] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return stamps

    def _read(self, names: Iterable[str]) -> tuple[dict[str, KeySettings], list[Fault]]:
        keys: dict[str, KeySettings] = {}
        faults: list[Fault] = []
        for name in sorted(names):
            path = self._folder / name
            try:
                key = settings.load(path, KeySettings)
            except ConfigError as error:
                faults.extend(error.faults)
                continue
            others = {**self._good, **keys}
            taken = next(
                (
                    n
                    for n, k in others.items()
                    if k.name == key.name and n != name and (self._folder / n).exists()
                ),
                None,
            )
            if taken is not None:
                faults.append(Fault(path, "name", f"{key.name!r} is already the name in {taken}"))
                continue
            keys[name] = key
        return keys, faults
