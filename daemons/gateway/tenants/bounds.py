"""How much a key or an address may use."""

import ipaddress
from functools import cached_property

from pydantic import Field, field_validator

from daemons.runtime.settings import Settings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Figures = tuple[int | None, int | None, int | None, int | None, int | None]
"""Concurrency, requests and tokens a minute, tokens a day and a month; None does not bind."""


class Bounds(Settings):
    """Limits; one that is not named does not bind."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests within any 60 seconds."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens, prompt and answer, of requests that began within any 60 seconds."""
    concurrency: int | None = Field(default=None, ge=1)
    """Requests at once, waiting ones included."""
    tokens_per_day: int | None = Field(default=None, ge=1)
    """Tokens of a day (UTC)."""
    tokens_per_month: int | None = Field(default=None, ge=1)
    """Tokens of a calendar month (UTC)."""

    @cached_property
    def figures(self) -> Figures:
        """All of them, to be read by every request: a field of a model costs as much as a call."""
        return (
            self.concurrency,
            self.requests_per_minute,
            self.tokens_per_minute,
            self.tokens_per_day,
            self.tokens_per_month,
        )


class AddressSettings(Settings):
    """What clients may do from one address; an IPv6 client is its /64."""

    trusted_proxies: tuple[Network, ...] = ()
    """Networks of proxies whose ``X-Forwarded-For`` is believed; without one, the peer is the client."""
    limits: Bounds = Bounds()
    """Limits of an address, over all keys that are used from there."""
    failures_per_minute: int = Field(default=30, ge=1)
    """Requests with a wrong key from one address; after that it has to wait, keys in use there excepted."""


class SharedLimitsSettings(Settings):
    """The server in which several gateways share their limits."""

    url: str
    """``redis://HOST:PORT/DB``, ``rediss://…`` or ``unix:///PATH``; the password is the credential
    ``redis-password``."""
    prefix: str = Field(default="llm", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Begins every name in the server, where several installations use the same one."""

    @field_validator("url")
    @classmethod
    def _usable(cls, value: str) -> str:
        if not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("expected redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH")
        if "@" in value or "password=" in value:
            raise ValueError("expected no password here: it is the credential redis-password")
        return value
