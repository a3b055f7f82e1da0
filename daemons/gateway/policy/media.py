"""Media in a conversation: inside the request as ``data:`` URLs, or from hosts that an engine may reach."""

from collections.abc import Collection, Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.policy.checks import value_of

_KEYS = frozenset({"image_url", "video_url", "audio_url", "file_url", "url"})
_NOT_OURS = frozenset({"uuid", "image_embeds", "audio_embeds", "prompt_embeds"})


def may_hold_media(body: bytes) -> bool:
    """Whether a request could hold media at all; keys can hide from this only behind escapes, which count."""
    return b"url" in body or b"uuid" in body or b"_embeds" in body or b"\\u00" in body


def check_media(name: str, raw: msgspec.Raw, hosts: Collection[str]) -> None:
    """Refuse media from anywhere but `hosts`; `raw` is a conversation in any of the APIs' forms.

    Raises:
        ApiError: a part names a URL that the engine must not fetch.
    """
    for part in _parts(value_of(name, raw)):
        if part.keys() & _NOT_OURS:
            found = min(part.keys() & _NOT_OURS)
            raise ApiError(
                ErrorCode.PARAMETER_NOT_ALLOWED, f"'{found}' in '{name}' must not be set.", param=name
            )
        for key in part.keys() & _KEYS:
            value = part[key]
            _check_url(name, value.get("url") if isinstance(value, dict) else value, hosts)


def _parts(conversation: Any) -> Iterator[dict[str, Any]]:
    """Every content part, however deep tool results and sources nest them."""
    waiting = [conversation]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            yield node
            waiting.extend(node[key] for key in ("content", "source", "output") if key in node)


def _check_url(name: str, url: Any, hosts: Collection[str]) -> None:
    if url is None:
        return
    if isinstance(url, str):
        if url[:5].lower() == "data:":
            return
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme in {"http", "https"} and parts.hostname in hosts and "@" not in parts.netloc:
            return
    where = f"data: URLs and {', '.join(sorted(hosts))}" if hosts else "data: URLs"
    raise ApiError(
        ErrorCode.PARAMETER_NOT_ALLOWED,
        f"Media in '{name}' must come from {where}; this server fetches nothing else.",
        param=name,
    )
