"""Media in a conversation: inside the request as ``data:`` URLs, or from hosts that an engine may reach."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from daemons.gateway.errors import ApiError, ErrorCode
from daemons.gateway.policy.checks import value_of

_KEYS = frozenset({"image_url", "video_url", "audio_url", "file_url", "url"})
_NESTING = ("content", "source", "output", "tool")
_INSIDE = frozenset({"input_audio", "data", "file_data"})
# Keys and types of content parts by which tensors, the engine's own cache entries, or tools that nobody has
# counted would come in.
_NOT_OURS = frozenset(
    {
        "audio_embeds",
        "image_embeds",
        "image_pil",
        "prompt_embeds",
        "tool_definition",
        "uuid",
        "video_embeds",
    }
)
# What a document that a template renders may be described by; a content part has a type or a key of media.
_DESCRIBES = frozenset({"url", "uuid"})
_HINTS = (
    b"url",
    b"uuid",
    b"_embeds",
    b"image_pil",
    b"input_audio",
    b"base64",
    b"file_data",
    b"tool_definition",
    b"\\u00",
)


@dataclass(frozen=True, slots=True)
class Media:
    """What a conversation holds of media within itself.

    Attributes:
        count: images, sounds and files.
        size: their bytes.
    """

    count: int
    size: int

    def __add__(self, other: "Media") -> "Media":
        return Media(self.count + other.count, self.size + other.size)


NO_MEDIA = Media(0, 0)


class Text(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message that is a text and nothing else."""

    role: str
    content: str


_decode_texts = msgspec.json.Decoder(list[Text]).decode


def count_texts(messages: msgspec.Raw) -> int | None:
    """How many `messages` there are if they are texts and nothing else: the common case, told in one pass."""
    try:
        return len(_decode_texts(messages))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def may_hold_media(body: bytes) -> bool:
    """Whether a request could hold media at all; keys can hide from this only behind escapes, which count."""
    return any(hint in body for hint in _HINTS)


def check_media(name: str, raw: msgspec.Raw, hosts: Collection[str]) -> Media:
    """Refuse media from anywhere but `hosts`; `raw` is a conversation in any of the APIs' forms.

    Raises:
        ApiError: a part names a URL that the engine must not fetch.
    """
    found = NO_MEDIA
    for part in _parts(value_of(name, raw)):
        kind, given = part.get("type"), set(part)
        if name == "documents" and kind is None and given.isdisjoint((_KEYS | _NOT_OURS) - _DESCRIBES):
            given -= _DESCRIBES
        refused = given & _NOT_OURS or ({kind} & _NOT_OURS if isinstance(kind, str) else ())
        if refused:
            raise ApiError(
                ErrorCode.PARAMETER_NOT_ALLOWED, f"'{min(refused)}' in '{name}' must not be set.", param=name
            )
        for key in given & _KEYS:
            value = part[key]
            url = value.get("url") if isinstance(value, dict) else value
            _check_url(name, url, hosts)
            found += _size(url)
        for key in given & _INSIDE:
            value = part[key]
            found += _size(value.get("data") if isinstance(value, dict) else value)
    return found


def _size(media: Any) -> Media:
    return Media(1, len(media)) if isinstance(media, str) else NO_MEDIA


def _parts(conversation: Any) -> Iterator[dict[str, Any]]:
    """Every content part, however deep tool results and sources nest them."""
    waiting = [conversation]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            yield node
            waiting.extend(node[key] for key in _NESTING if key in node)


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
