"""Which client a request comes from, and what becomes of one with wrong keys."""

import ipaddress
from hashlib import sha256

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.tenants.addresses import Clients, Failures, group_of
from daemons.gateway.tenants.authenticate import Authenticator
from daemons.gateway.tenants.keys import KeySettings
from daemons.gateway.tenants.ring import KeyRing

PROXIES = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


def headers(*forwarded: str, key: str = "") -> CIMultiDictProxy[str]:
    given = CIMultiDict([("X-Forwarded-For", value) for value in forwarded])
    if key:
        given["Authorization"] = f"Bearer {key}"
    return CIMultiDictProxy(given)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", ["203.0.113.5"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["6.6.6.6, 203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["6.6.6.6", "203.0.113.5, 10.0.0.2"], "203.0.113.5"),
        ("::ffff:10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["203.0.113.5, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["fe80::1%\udcff"], "10.0.0.1"),
        ("10.0.0.1", ["fe80::1%sk-0123456789abcdef outcome=ok"], "fe80::1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("fd00::1", ["203.0.113.5"], "203.0.113.5"),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str, forwarded: list[str], client: str) -> None:
    assert Clients(PROXIES).of(headers(*forwarded), peer) == client
    assert Clients(()).of(headers(*forwarded), peer) == peer


def test_a_unix_socket_has_no_address() -> None:
    assert Clients(PROXIES).of(headers("203.0.113.5"), None) == ""
    assert group_of("") == ""


def test_an_ipv6_client_is_its_network() -> None:
    assert group_of("2001:db8:0:1::1") == group_of("2001:db8:0:1:ffff::2") == "2001:db8:0:1::/64"
    assert group_of("2001:db8:0:2::1") != group_of("2001:db8:0:1::1")
    assert group_of("::ffff:192.0.2.1") == group_of("192.0.2.1") == "192.0.2.1"
    assert group_of("fe80::1%eth0") == "fe80::/64"


class Door:
    """An authenticator on a clock of its own, with the keys ``right`` and ``other``."""

    def __init__(self, limit: int) -> None:
        self.now = 100.0
        ring = KeyRing()
        ring.replace(
            KeySettings(name=name, secrets=[f"sha256:{sha256(name.encode()).hexdigest()}"])
            for name in ("right", "other")
        )
        self.failures = Failures(limit)
        self.authenticate = Authenticator(ring, Clients(()), self.failures, lambda: self.now)

    def knock(self, key: str, peer: str = "192.0.2.1") -> ErrorCode | None:
        try:
            self.authenticate(headers(key=key), peer)
        except ApiError as error:
            if error.code is ErrorCode.RATE_LIMIT_EXCEEDED and "Retry-After" not in error.headers:
                raise
            return error.code
        return None


def test_wrong_keys_are_slowed_and_say_no_more_about_right_ones() -> None:
    door = Door(limit=3)
    assert [door.knock("wrong") for _ in range(5)] == [
        *[ErrorCode.INVALID_API_KEY] * 3,
        *[ErrorCode.RATE_LIMIT_EXCEEDED] * 2,
    ]
    assert door.knock("right") is ErrorCode.RATE_LIMIT_EXCEEDED
    assert door.knock("right", "192.0.2.2") is None
    door.now += 61
    assert door.knock("right") is None


def test_a_wrong_key_does_not_lock_out_those_who_were_there_before() -> None:
    door = Door(limit=3)
    door.knock("wrong")
    assert door.knock("right") is None
    for _ in range(5):
        door.knock("wrong")
    assert door.knock("right") is None
    assert door.knock("other") is ErrorCode.RATE_LIMIT_EXCEEDED


def test_an_ipv6_network_is_slowed_as_one_and_forgotten_after_a_minute() -> None:
    door = Door(limit=3)
    for i in range(3):
        assert door.knock("wrong", f"2001:db8::{i}") is ErrorCode.INVALID_API_KEY
    assert door.knock("wrong", "2001:db8::ffff") is ErrorCode.RATE_LIMIT_EXCEEDED
    assert door.failures.recent
    door.now += 61
    door.failures.prune(door.now)
    assert not door.failures.recent


def test_memory_for_failures_is_bounded() -> None:
    failures = Failures(3)
    for i in range(20_000):
        failures.failed(str(i), 1.0)
    assert len(failures.recent) <= 16_384
