"""Streams of named events, as the messages and responses endpoints send them."""

from typing import Any

import msgspec

from daemons.simulator.http.stream import EventStream


class NamedEvents:
    """Writes ``event:`` and ``data:`` lines; there is no ``[DONE]`` at the end."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    def send(self, name: str, data: dict[str, Any]) -> None:
        """One event."""
        self.send_json(name.encode(), msgspec.json.encode(data))

    def send_json(self, name: bytes, data: bytes) -> None:
        """One event whose data is encoded already."""
        self._stream.send(b"event: %b\ndata: %b\n\n" % (name, data))

    def close(self) -> None:
        """The body is complete."""
        self._stream.close()

    def abandon(self) -> None:
        """The body breaks off."""
        self._stream.abandon()
