"""Key files: who may use the gateway, with hashed secrets, watched for change.

A change is taken over whole or, where a file is broken, not at all: the last good state of that file stays in
force and the fault is reported.
"""

import datetime as dt
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field, model_validator

from daemons.gateway.settings import Name, Priority
from daemons.gateway.tenants.bounds import Bounds, Network
from daemons.gateway.tenants.ring import KeyRing
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

    def all_secrets(self) -> list[SecretSettings]:
        """Its secrets, those without an end of their own included."""
        return [s if isinstance(s, SecretSettings) else SecretSettings(hash=s) for s in self.secrets]


class KeyFolder:
    """Reads ``keys.d`` and notices changes by the files' times, which works in every sandbox.

    A tool that keeps a file's size and time of modification cannot keep that of its last change, `st_ctime`.
    Files go by their names: a path for each would make looking for changes three times as dear.
    """

    def __init__(self, folder: Path, ring: KeyRing) -> None:
        self._folder = folder
        self._ring = ring
        self._good: dict[str, KeySettings] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
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

    def _scan(self) -> dict[str, tuple[int, ...]]:
        stamps: dict[str, tuple[int, ...]] = {}
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
            stamps[file.name] = (
                status.st_mtime_ns,
                status.st_ctime_ns,
                status.st_size,
                status.st_ino,
            )
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
