"""Who is asking: a bearer token or ``X-API-Key`` becomes a tenant."""

import ipaddress
import time

from aiohttp import hdrs
from multidict import CIMultiDictProxy, istr

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.tenants.keys import KeyRing, Tenant

_X_API_KEY = istr("X-API-Key")
_MAX_KEY = 512


class Authenticator:
    """Turns the headers of a request into a tenant."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def __call__(self, headers: CIMultiDictProxy[str], peer: str | None) -> Tenant:
        """The tenant that presents a key.

        Args:
            headers: of the request.
            peer: address of the client; None on a unix socket.

        Raises:
            ApiError: no key, a wrong one, or one that may not be used from there.
        """
        presented = presented_key(headers)
        tenant = self._ring.find(presented.encode(errors="surrogateescape"), time.time())
        if tenant is None:
            raise ApiError(
                ErrorCode.INVALID_API_KEY,
                "The API key is not known here, has expired, or is disabled.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if tenant.networks and not _within(peer, tenant):
            raise ApiError(ErrorCode.NETWORK_NOT_ALLOWED, "This API key may not be used from this network.")
        return tenant


def presented_key(headers: CIMultiDictProxy[str]) -> str:
    """The key in ``Authorization: Bearer`` or ``X-API-Key``.

    Raises:
        ApiError: there is none.
    """
    given = headers.get(hdrs.AUTHORIZATION)
    if given is not None:
        scheme, _, key = given.partition(" ")
        key = key.strip()
        if scheme.lower() == "bearer" and 0 < len(key) <= _MAX_KEY:
            return key
    key = headers.get(_X_API_KEY, "").strip()
    if 0 < len(key) <= _MAX_KEY:
        return key
    raise ApiError(
        ErrorCode.INVALID_API_KEY,
        "No API key was sent: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _within(peer: str | None, tenant: Tenant) -> bool:
    if peer is None:
        return False
    address = ipaddress.ip_address(peer.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in tenant.networks)
