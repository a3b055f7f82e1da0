"""The keys in force, and whose they are."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import TYPE_CHECKING

from daemons.gateway.tenants.rate_lines import RateLines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daemons.gateway.settings import Priority
    from daemons.gateway.tenants.bounds import Bounds, Network
    from daemons.gateway.tenants.keys import KeySettings


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

    __slots__ = (
        "alias",
        "cache_group",
        "expires",
        "limits",
        "models",
        "networks",
        "priority",
        "rate_lines",
    )

    def __init__(
        self,
        alias: str,
        *,
        priority: Priority = "default",
        models: frozenset[str] | None = None,
        networks: tuple[Network, ...] = (),
        limits: Bounds,
        expires: float | None = None,
        cache_group: str,
    ) -> None:
        self.alias = alias
        self.priority: Priority = priority
        self.models = models
        self.networks = networks
        self.limits = limits
        self.expires = expires
        self.cache_group = cache_group
        self.rate_lines = RateLines(limits)


class _Secret:
    __slots__ = ("digest", "expires", "tenant")

    def __init__(self, digest: bytes, expires: float | None, tenant: Tenant | None) -> None:
        self.digest = digest
        self.expires = expires
        self.tenant = tenant


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


def _secrets_of(key: KeySettings) -> list[_Secret]:
    expires = key.expires.timestamp() if key.expires else None
    tenant = Tenant(
        key.name,
        priority=key.priority,
        models=None if "*" in key.models else frozenset(key.models),
        networks=key.networks,
        limits=key.limits,
        expires=expires,
        # No key's own name: a key of the name that others chose for their group is none of them.
        cache_group=f"group:{key.cache_group}" if key.cache_group else key.name,
    )
    made = []
    for secret in key.all_secrets():
        ends = [e for e in (expires, secret.expires.timestamp() if secret.expires else None) if e is not None]
        made.append(_Secret(bytes.fromhex(secret.hash.partition(":")[2]), min(ends, default=None), tenant))
    return made
