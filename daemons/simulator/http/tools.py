"""Tool calls: where the request demands one, the answer is a call whose arguments fit its schema."""

from collections.abc import Iterator
from typing import Any

import msgspec

from daemons.simulator.http.errors import bad_request
from daemons.simulator.http.requests import ChatRequest, NamedTool
from daemons.simulator.http.service import random_id
from daemons.simulator.model.output import Finish
from daemons.simulator.model.text import END, Piece, encode, piece_of

_OPENING = "<tool_call>"


def check(body: ChatRequest, *, auto: bool) -> None:
    """Refuse a tool choice that cannot be served.

    Raises:
        ApiError: there are no tools, or the model may not choose.
    """
    choice = body.tool_choice
    if choice not in (None, "none") and not body.tools:
        raise bad_request("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if choice == "auto" and not auto:
        raise bad_request(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        )
    if isinstance(choice, NamedTool) and choice.function.name not in _names(body):
        raise bad_request("The tool specified in `tool_choice` does not match any of the specified `tools`")


def _names(body: ChatRequest) -> list[str]:
    return [tool.function.name for tool in body.tools or ()]


def called(body: ChatRequest) -> str | None:
    """The function that the answer has to call."""
    if isinstance(body.tool_choice, NamedTool):
        return body.tool_choice.function.name
    return _names(body)[0] if body.tool_choice == "required" and body.tools else None


def scripts(body: ChatRequest, seed: int) -> list[Iterator[Piece]]:
    """The calls as texts to be written, one for each choice; none where no call is demanded."""
    name = called(body)
    if name is None:
        return []
    schema = next(tool.function.parameters for tool in body.tools or () if tool.function.name == name)
    arguments = msgspec.json.encode(_example(schema or {}, seed)).decode()
    return [_script(arguments) for _ in range(body.n or 1)]


def _script(text: str) -> Iterator[Piece]:
    # The tokens that name the function show as no text: the first delta has the name alone.
    yield piece_of("", encode(_OPENING)[0])
    for token in encode(text):
        data = token.to_bytes((token.bit_length() + 7) // 8, "big")[1:]
        yield piece_of(data.decode("utf-8", "replace"), token)
    while True:
        yield END


def _example(schema: dict[str, Any], seed: int) -> object:
    """The simplest value that `schema` allows."""
    if schema.get("enum"):
        return schema["enum"][seed % len(schema["enum"])]
    kind = schema.get("type", "object")
    if kind == "object":
        properties = schema.get("properties") or {}
        required = schema.get("required") or list(properties)
        return {key: _example(properties.get(key) or {"type": "string"}, seed) for key in required}
    if kind == "array":
        return [_example(schema.get("items") or {"type": "string"}, seed)]
    simple: dict[str, object] = {"string": "simulated", "integer": 1, "number": 1.5, "boolean": True}
    return simple.get(kind)


class Calls:
    """How an answer shows the call it makes, if it makes one."""

    def __init__(self, body: ChatRequest) -> None:
        self._name = called(body)
        self._named = isinstance(body.tool_choice, NamedTool)
        self._opened: set[int] = set()

    def delta(self, choice: int, piece: Piece) -> bytes | None:
        """The delta of one token of a call, and None for a token of plain text."""
        if self._name is None:
            return None
        if choice in self._opened:
            if not piece.text:
                return b"{}"
            return b'{"content":null,"tool_calls":[{"index":0,"function":{"arguments":%b}}]}' % piece.json
        self._opened.add(choice)
        call = {
            "id": f"chatcmpl-tool-{random_id()}",
            "type": "function",
            "index": 0,
            "function": {"name": self._name},
        }
        return b'{"content":null,"tool_calls":[%b]}' % msgspec.json.encode(call)

    def content(self, text: str) -> str:
        """The message's text."""
        return text if self._name is None else ""

    def whole(self, text: str) -> dict[str, Any]:
        """``tool_calls`` of a message that is sent whole."""
        if self._name is None:
            return {}
        function = {"name": self._name, "arguments": text}
        return {
            "tool_calls": [{"id": f"chatcmpl-tool-{random_id()}", "type": "function", "function": function}]
        }

    def finish_reason(self, finish: Finish) -> str:
        """``tool_calls`` for a call the model chose, else the reason itself."""
        chosen = self._name is not None and not self._named
        return "tool_calls" if chosen and finish.reason == "stop" else finish.reason
