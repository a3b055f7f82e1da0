"""Who is asking: a bearer token or ``X-API-Key`` becomes a tenant."""

import math
from collections.abc import Callable
from time import monotonic, time

from aiohttp import hdrs
from multidict import CIMultiDictProxy, istr

from daemons.gateway.errors import ErrorCode, StrangerError
from daemons.gateway.tenants.addresses import Clients, Failures, group_of, parse_address
from daemons.gateway.tenants.ring import KeyRing, Tenant

_X_API_KEY = istr("X-API-Key")
_MAX_KEY = 512


class Authenticator:
    """Turns the headers of a request into a tenant.

    Args:
        ring: the keys in force.
        clients: tells where a request comes from.
        failures: counts wrong keys by address.
        monotonic: the clock of `failures`.
    """

    def __init__(
        self,
        ring: KeyRing,
        clients: Clients,
        failures: Failures,
        monotonic: Callable[[], float] = monotonic,
    ) -> None:
        self._ring = ring
        self._clients = clients
        self._failures = failures
        self._monotonic = monotonic

    def __call__(self, headers: CIMultiDictProxy[str], peer: str | None) -> tuple[Tenant, str]:
        """The tenant that presents a key, and the address of the client; empty where that is not known.

        Args:
            headers: of the request.
            peer: address of the other end of the connection; None on a unix socket.

        Raises:
            StrangerError: no key, a wrong one, one that may not be used from there, or too many wrong ones.
        """
        clients = self._clients
        client = clients.of(headers, peer) if clients.trusted else peer or ""
        presented = presented_key(headers)
        tenant = self._ring.find(presented.encode("utf-8", "surrogateescape"), time())
        if self._failures.recent:
            self._slow(client, tenant)
        if tenant is None:
            self._failures.failed(group_of(client), self._monotonic())
            raise StrangerError(
                ErrorCode.INVALID_API_KEY,
                "The API key is not known here, has expired, or is disabled.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if tenant.networks and not _within(client, tenant):
            raise StrangerError(
                ErrorCode.NETWORK_NOT_ALLOWED, "This API key may not be used from this network."
            )
        return tenant, client

    def _slow(self, client: str, tenant: Tenant | None) -> None:
        """Some address has failed lately; turn this one away if it failed too often.

        Raises:
            StrangerError: it did; whether the key is right stays unsaid.
        """
        group = group_of(client)
        if tenant is not None and self._failures.knows(group, tenant.alias):
            return
        wait = self._failures.wait(group, self._monotonic())
        if wait:
            seconds = math.ceil(wait)
            raise StrangerError(
                ErrorCode.RATE_LIMIT_EXCEEDED,
                f"Too many wrong API keys came from your network address; try again in {seconds} s.",
                headers={"Retry-After": str(seconds)},
            )
        if tenant is not None:
            self._failures.worked(group, tenant.alias)


def presented_key(headers: CIMultiDictProxy[str]) -> str:
    """The key in ``Authorization: Bearer`` or ``X-API-Key``.

    Raises:
        StrangerError: there is none.
    """
    given = headers.get(hdrs.AUTHORIZATION)
    if given is not None:
        scheme, _, key = given.partition(" ")
        key = key.strip()
        if (scheme == "Bearer" or scheme.lower() == "bearer") and 0 < len(key) <= _MAX_KEY:
            return key
    key = headers.get(_X_API_KEY, "").strip()
    if 0 < len(key) <= _MAX_KEY:
        return key
    raise StrangerError(
        ErrorCode.INVALID_API_KEY,
        "No API key was sent: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _within(client: str, tenant: Tenant) -> bool:
    address = parse_address(client)
    return address is not None and any(address in network for network in tenant.networks)
