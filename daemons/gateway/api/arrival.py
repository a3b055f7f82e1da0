"""A request whose head has arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from multidict import CIMultiDictProxy

    from daemons.gateway.api.server import ClientConnection


class RequestHead(Protocol):
    """What is read of a head.

    aiohttp's own type says less: it is a tuple to whoever checks types, and at run time it is none.
    """

    @property
    def method(self) -> str:
        """As it was sent."""

    @property
    def path(self) -> str:
        """The target, with its query."""

    @property
    def version(self) -> object:
        """Of HTTP."""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """Its fields."""

    @property
    def should_close(self) -> bool:
        """The client sends nothing more on its connection."""

    @property
    def upgrade(self) -> bool:
        """The client asks for another protocol."""


class Arrival:
    """A request whose head has arrived.

    Attributes:
        client: its connection.
        message: its head.
        content: its body, as it arrives.
        request_id: as echoed to the client and logged; set by who serves it.
    """

    __slots__ = ("client", "content", "message", "request_id")

    def __init__(self, client: ClientConnection, message: RequestHead, content: StreamReader) -> None:
        self.client = client
        self.message = message
        self.content = content
        self.request_id = ""
