"""Which client a request comes from, and the addresses that have sent too many wrong keys."""

import ipaddress
from collections.abc import Callable, Sequence
from functools import lru_cache

from aiohttp import hdrs
from multidict import CIMultiDictProxy

from daemons.gateway.tenants.bounds import Network
from daemons.gateway.tenants.windows import Window

_REMEMBERED = 16384

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(text: str) -> Address | None:
    """An address, an IPv4 one inside IPv6 as itself; None when `text` is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


@lru_cache(_REMEMBERED)
def group_of(client: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 one (RFC 4291: a single network)."""
    address = parse_address(client)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address) if address is not None else ""


class Clients:
    """Finds the client behind proxies.

    Args:
        trusted: networks of proxies whose ``X-Forwarded-For`` is believed.

    Attributes:
        trusted: these; where there are none, every client is its peer.
    """

    def __init__(self, trusted: Sequence[Network]) -> None:
        self.trusted = tuple(trusted)
        self._is_proxy: Callable[[str], bool] = lru_cache(_REMEMBERED)(self._find)

    def of(self, headers: CIMultiDictProxy[str], peer: str | None) -> str:
        """The address of the client whose request came from `peer`; empty where it is not known.

        The last entry of ``X-Forwarded-For`` was written by the nearest proxy, and is believed if that is
        trusted, and so on; what a client wrote in front of it is not.
        """
        client = peer or ""
        if not self.trusted or not self._is_proxy(client):
            return client
        for entry in reversed(",".join(headers.getall(hdrs.X_FORWARDED_FOR, ())).split(",")):
            hop = entry.strip()
            address = parse_address(hop) if hop.isascii() else None
            if address is None:
                break
            # Without a zone: it may be any text, and addresses are logged.
            client = str(address)
            if not self._is_proxy(client):
                break
        return client

    def _find(self, peer: str) -> bool:
        address = parse_address(peer)
        return address is not None and any(address in network for network in self.trusted)


class Failures:
    """Slows addresses down that send wrong keys again and again.

    Keys that were in use at an address before it was slowed go on working there: a client with a wrong key
    must not lock out everybody behind the same router.

    Args:
        limit: failures within a minute.

    Attributes:
        recent: by address, those of the last minute, and the keys that work there.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.recent: dict[str, tuple[Window, set[str]]] = {}

    def failed(self, group: str, now: float) -> None:
        """A wrong key came from `group`."""
        entry = self.recent.get(group)
        if entry is None:
            if len(self.recent) >= _REMEMBERED:
                self.recent.pop(next(iter(self.recent)))
            entry = self.recent[group] = (Window(), set())
        entry[0].advance(now)
        entry[0].add(1, now)

    def worked(self, group: str, alias: str) -> None:
        """A key that worked came from `group`."""
        entry = self.recent.get(group)
        if entry is not None:
            entry[1].add(alias)

    def wait(self, group: str, now: float) -> float:
        """Seconds that `group` has to wait before it may try another key; 0 where it need not."""
        entry = self.recent.get(group)
        if entry is None or entry[0].advance(now) < self._limit:
            return 0.0
        return entry[0].wait(1, self._limit, now)

    def knows(self, group: str, alias: str) -> bool:
        """Whether this key has worked at `group` since it began to fail."""
        entry = self.recent.get(group)
        return entry is not None and alias in entry[1]

    def prune(self, now: float) -> None:
        """Forget addresses without a failure within a minute."""
        for group, (window, _) in list(self.recent.items()):
            if not window.advance(now):
                del self.recent[group]
