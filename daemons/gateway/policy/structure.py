"""How many values a request may hold: what a server validates one by one, and fails at one by one.

An engine reports every entry of a list that does not fit, for each shape it might have had: a megabyte of
``1,`` in a place where messages belong keeps its API server busy for minutes and takes gigabytes (observed
with vLLM 0.32). Hence entries of lists are counted here first, wherever they are.
"""

import re

import msgspec

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.policy.bounds import PolicySettings

_TOKEN_LISTS = frozenset({"prompt", "input", "tokens"})
_OF_TOKEN_LISTS = b"0123456789, \t\r\n[]"
# A string whole, or what opens, parts and closes; possessive, so that no input makes it look twice.
_MARKS = re.compile(rb'"(?:[^"\\]++|(?:\\.)++)*+"|[\[\]{},]', re.DOTALL)
_MARKS_PER_ENTRY = 16
"""Strings and punctuation that come with an entry of a list; a conversation has about ten."""


def check_structure(body: dict[str, msgspec.Raw], size: int, bounds: PolicySettings) -> None:
    """Refuse a body of `size` bytes with more entries of lists than may be.

    Raises:
        ApiError: a parameter has too many; it is named.
    """
    # An entry takes two bytes at least.
    if size <= 2 * bounds.entries:
        return
    for name, raw in body.items():
        view = memoryview(raw)
        if len(view) <= 2 * bounds.entries:
            continue
        data = bytes(view)
        if name in _TOKEN_LISTS and _are_tokens(data) and data.count(b"[") <= bounds.entries:
            continue
        if data[:1] != b'"' and _has_more(data, bounds.entries):
            raise ApiError(
                ErrorCode.PARAMETER_OUT_OF_BOUNDS,
                f"'{name}' has too many values; its lists may have {bounds.entries} entries together.",
                param=name,
            )


def _are_tokens(data: bytes) -> bool:
    """Whether `data` has nothing but token ids and lists of them."""
    return not data.translate(None, _OF_TOKEN_LISTS)


def _has_more(data: bytes, bound: int) -> bool:
    """Whether the lists in `data` have more than `bound` entries together, or it has too many values."""
    if data.count(b",") + data.count(b"[") <= bound:
        return False
    inside: list[bool] = []
    entries = 0
    for marks, match in enumerate(_MARKS.finditer(data)):
        mark = data[match.start()]
        if mark == 0x2C:  # ,
            entries += bool(inside) and inside[-1]
        elif mark in b"[{":
            inside.append(mark == 0x5B)  # [
            entries += inside[-1]
        elif mark in b"]}" and inside:
            inside.pop()
        if entries > bound or marks > _MARKS_PER_ENTRY * bound:
            return True
    return False
