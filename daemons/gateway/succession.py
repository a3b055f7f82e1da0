"""What a worker that goes tells the one that serves after it.

The worker that serves listens on a socket in the master's private folder. One that drains connects once a
second and at its end, and says everything anew each time: a word that is lost or comes twice changes nothing.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger()

SOCKET = "LLM_GATEWAY_SUCCESSION"
"""Environment variable with the socket's path."""
PREDECESSOR = "LLM_GATEWAY_PREDECESSOR"
"""Environment variable that is set where another worker still serves."""
_LARGEST = 64 * 1024 * 1024
_PATIENCE = 2.0
_FIRST_WORD = 5.0


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker has to tell of itself.

    Attributes:
        worker: which one; no two of one master are alike.
        number: counts its words.
        last: it has ended.
        sections: its state, by the part of the gateway that it belongs to.
    """

    worker: str
    number: int
    last: bool
    sections: dict[str, msgspec.Raw]


Hear = Callable[[Word], None]
_decode = msgspec.json.Decoder(Word).decode


class Succession:
    """A worker's place between its predecessor and its successor.

    Args:
        path: the socket on which the worker that serves listens.
        predecessor: whether another worker serves until this one does.

    Attributes:
        limits: the socket on which the worker that serves hands over its limits.
        predecessor: as given.
    """

    def __init__(self, path: Path, *, predecessor: bool) -> None:
        self._path = path
        self.limits = path.with_name("limits")
        self.predecessor = predecessor
        self._server: asyncio.Server | None = None
        self._heard = asyncio.Event()
        if not predecessor:
            self._heard.set()

    async def listen(self, hear: Hear) -> None:
        """From now on `hear` is called with every word of workers that go."""
        half = self._path.with_name(f"{self._path.name}-{os.getpid()}")

        async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                self._take(await reader.read(-1), hear)
            writer.close()

        self._server = await asyncio.start_unix_server(read, half, limit=_LARGEST)
        # The former listener stays reachable until the very moment in which this one is.
        await asyncio.to_thread(half.rename, self._path)

    def _take(self, data: bytes, hear: Hear) -> None:
        if not data:
            # Given up before it was said; another follows.
            return
        try:
            hear(_decode(data))
        except (msgspec.MsgspecError, KeyError) as error:
            # One of another release may.
            log.warning("a worker that goes said what cannot be understood", reason=str(error))
        self._heard.set()

    async def predecessor_told(self) -> None:
        """Wait for the first word of the predecessor, but not for one that has nothing to say any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_WORD):
                await self._heard.wait()

    def stop_listening(self) -> None:
        """This worker goes itself."""
        if self._server is not None:
            self._server.close()

    async def tell(self, word: Word) -> None:
        """Say `word` to the worker that serves now, if there is one."""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    writer.write(msgspec.json.encode(word))
                    writer.write_eof()
                    await reader.read()
                finally:
                    writer.close()


def from_environment(environment: Mapping[str, str]) -> Succession | None:
    """The place that the master gave this worker; None where there is no master."""
    path = environment.get(SOCKET)
    return Succession(Path(path), predecessor=PREDECESSOR in environment) if path else None
