"""A forward proxy for test hosts: apt (GET with an absolute address) and pip (CONNECT), named hosts only.

Run as ``python proxy.py ADDRESS PORT HOST:PORT...``.
"""

import asyncio
import contextlib
import sys
from urllib.parse import urlsplit

_REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_HOP_HEADERS = (b"connection:", b"proxy-", b"keep-alive:")


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.close()


def _target(method: str, url: str) -> tuple[str, int]:
    if method == "CONNECT":
        host, _, port = url.rpartition(":")
        return host, int(port)
    split = urlsplit(url)
    return split.hostname or "", split.port or 80


def _forwarded(method: str, url: str, headers: bytes) -> bytes:
    """The request for the origin. One request a connection, so that none rides to another host."""
    split = urlsplit(url)
    path = split.path or "/"
    path += f"?{split.query}" if split.query else ""
    kept = [line for line in headers.split(b"\r\n") if line and not line.lower().startswith(_HOP_HEADERS)]
    return b"\r\n".join([f"{method} {path} HTTP/1.1".encode(), *kept, b"Connection: close", b"", b""])


class Proxy:
    """Serves connections to the `allowed` hosts, refuses the others."""

    def __init__(self, allowed: set[tuple[str, int]]) -> None:
        self._allowed = allowed

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection."""
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            line, _, headers = head.partition(b"\r\n")
            method, url, _ = line.decode("latin-1").split(" ")
            if (target := _target(method, url)) not in self._allowed:
                writer.write(_REFUSED)
                await writer.drain()
                writer.close()
                return
            up_reader, up_writer = await asyncio.open_connection(*target)
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                up_writer.write(_forwarded(method, url, headers))
            await asyncio.gather(_copy(reader, up_writer), _copy(up_reader, writer))
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            writer.close()


async def _main(address: str, port: int, allowed: list[str]) -> None:
    pairs = {(host, int(number)) for host, _, number in (item.rpartition(":") for item in allowed)}
    server = await asyncio.start_server(Proxy(pairs).handle, address, port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
