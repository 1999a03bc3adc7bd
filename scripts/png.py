"""Reduce the size of a screenshot: use its 256 most common colors as a palette.

Other colors, which are mostly shades at the edges of letters, are replaced by the nearest one.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Pixel = tuple[int, int, int]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB, PALETTE = 2, 3
MOST_COLOURS = 256
EACH = 3
"""Bytes of a pixel of the picture that is given."""


def shrink(picture: bytes) -> bytes:
    """Return a smaller PNG of the same picture.

    Args:
        picture: A PNG as Chromium writes it: eight bits of red, green and blue, not interlaced.

    Raises:
        ValueError: It is another kind of PNG.
    """
    parts = list(_parts(picture))
    header = parts[0][1]
    width, _, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if (depth, kind, interlaced) != (8, RGB, 0):
        raise ValueError("only a plain RGB picture can be shrunk")
    pixels = zlib.decompress(b"".join(data for name, data in parts if name == b"IDAT"))
    rows = [
        list(zip(*[iter(row)] * EACH, strict=True)) for row in _unfiltered(pixels, EACH * width)
    ]
    counts = Counter(pixel for row in rows for pixel in row)
    palette = [pixel for pixel, _ in counts.most_common(MOST_COLOURS)]
    places = {pixel: place for place, pixel in enumerate(palette)}
    for pixel in counts:
        if pixel not in places:
            places[pixel] = places[min(palette, key=lambda other: _distance(pixel, other))]
    lines = b"".join(b"\0" + bytes(places[pixel] for pixel in row) for row in rows)
    return SIGNATURE + b"".join(
        _part(name, data)
        for name, data in (
            (b"IHDR", header[:9] + bytes([PALETTE, 0, 0, 0])),
            (b"PLTE", b"".join(map(bytes, palette))),
            (b"IDAT", zlib.compress(lines, 9)),
            (b"IEND", b""),
        )
    )


def _distance(one: Pixel, other: Pixel) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _parts(picture: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(picture):
        length, name = struct.unpack_from(">I4s", picture, at)
        yield name, picture[at + 8 : at + 8 + length]
        at += length + 12


def _part(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))


def _unfiltered(pixels: bytes, width: int) -> Iterator[bytes]:
    """Undo each row's filter (PNG, 9.2): a byte was written as its difference to neighbours."""
    above = bytearray(width)
    for at in range(0, len(pixels), width + 1):
        kind, row = pixels[at], bytearray(pixels[at + 1 : at + 1 + width])
        for place in range(width if kind else 0):
            left, over, corner = 0, above[place], 0
            if place >= EACH:
                left, corner = row[place - EACH], above[place - EACH]
            row[place] = (row[place] + _guess(kind, left, over, corner)) & 0xFF
        yield bytes(row)
        above = row


def _guess(kind: int, left: int, over: int, corner: int) -> int:
    match kind:
        case 1:
            return left
        case 2:
            return over
        case 3:
            return (left + over) // 2
    paeth = left + over - corner
    return min((left, over, corner), key=lambda each: abs(paeth - each))
