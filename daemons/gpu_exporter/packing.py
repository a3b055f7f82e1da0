"""A page of which the large part is compressed once a collection, and the small rest at each scrape.

A deflate stream may be made of pieces that were compressed apart, if each ends on a byte (RFC 1951; zlib's
Z_FULL_FLUSH), and its checksum goes on from that of the piece before. So a gzip member (RFC 1952) is put
together from bytes made beforehand and every client takes it for an ordinary one.
"""

import struct
import zlib

import msgspec

_LEVEL = 1
"""Metrics repeat themselves: level 6 saves a further tenth and takes four times as long."""
_HEADER = bytes((0x1F, 0x8B, zlib.DEFLATED, 0, 0, 0, 0, 0, 4, 255))
"""Magic, method, no flags, no time, fastest level, no operating system."""
_MODULUS = 1 << 32


class Packed(msgspec.Struct, frozen=True):
    """The first part of a page.

    Attributes:
        plain: as it is.
        deflated: compressed, not ended.
        crc: checksum of `plain`.
    """

    plain: bytes = b""
    deflated: bytes = b""
    crc: int = 0


def pack(plain: bytes) -> Packed:
    """`plain`, compressed."""
    return Packed(plain, _deflate(plain, zlib.Z_FULL_FLUSH), zlib.crc32(plain))


def gzipped(first: Packed, rest: bytes) -> bytes:
    """``first.plain + rest`` as a gzip file; costs what compressing `rest` costs."""
    size = (len(first.plain) + len(rest)) % _MODULUS
    trailer = struct.pack("<II", zlib.crc32(rest, first.crc), size)
    return b"".join((_HEADER, first.deflated, _deflate(rest, zlib.Z_FINISH), trailer))


def _deflate(data: bytes, flush: int) -> bytes:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush(flush)
