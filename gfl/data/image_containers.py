"""The parts that image files consist of: JPEG segments, PNG chunks, RIFF chunks, TIFF tags, ISO boxes.

Nothing is decoded or unpacked, and the work is bounded by `MAX_PARTS`, whatever a file claims. Positions are those of
bytes in the file. Functions raise `struct.error` or `IndexError` for a file that ends early.
"""

import contextlib
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START, TIFF_ORDERS = b"\xff\xd8", {b"II": "<", b"MM": ">"}
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")
MAX_PARTS = 1 << 20  # a second's work; a PNG of 8 GB in chunks of 8 kB has as many

Part = tuple[bytes, int, int]  # kind, start and end of the content


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment's content; what is between segments is skipped, as libjpeg does."""
    position = len(JPEG_START)
    for _ in range(MAX_PARTS):
        found = JPEG_MARKER.search(data, position)
        if found is None or data[found.end() - 1] == JPEG_END:
            return
        marker, position = data[found.end() - 1], found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without content
            continue
        (length,) = struct.unpack_from(">H", data, position)
        yield marker, position + 2, position + length
        position += max(length, 2)


def png_chunks(data: bytes) -> Iterator[Part]:
    """Every chunk of a PNG file."""
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position + 8, position + 8 + length
        position += 12 + length


def riff_chunks(data: bytes) -> Iterator[Part]:
    """Every chunk of a RIFF file, which WebP is."""
    position = 12
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, position + 8, position + 8 + length
        position += 8 + length + length % 2


class Tag(NamedTuple):
    """An entry of a TIFF directory."""

    value: int  # of a number; the position of anything longer
    kind: int
    count: int
    position: int  # of the value
    format: str  # of the value, for `struct`


def find_tag(data: bytes, wanted: int) -> Tag | None:
    """A tag of the first directory of a TIFF structure, which EXIF is too."""
    order = TIFF_ORDERS.get(data[:2])
    if order is None:
        return None
    big = struct.unpack_from(order + "H", data, 2) == (43,)  # BigTIFF, with addresses of eight bytes
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    start, size = start + (8 if big else 2), 20 if big else 12
    for position in range(start, start + size * min(count, 4096), size):
        tag, kind, length = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, position)
        if tag == wanted:
            address = "Q" if big else "I"
            form = order + ({1: "B", 3: "H", 4: "I"}.get(kind, address) if length == 1 else address)
            at = position + size - (8 if big else 4)
            return Tag(struct.unpack_from(form, data, at)[0], kind, length, at, form)
    return None


def iso_boxes(data: bytes, start: int, end: int) -> Iterator[Part]:
    """Every box of the ISO base media format (AVIF, JPEG 2000) between two positions, without those inside."""
    for _ in range(MAX_PARTS):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + (16 if size == 1 else 8)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
        stop = end if size == 0 else start + size
        if stop < content:
            return
        yield kind, content, min(stop, end)
        start = stop


def has_track(data: bytes) -> bool:
    """Whether an ISO base media file has frames beside its images: an AVIF whose decoder would take these."""
    with contextlib.suppress(struct.error):  # it ends early
        return any(kind == b"moov" for kind, _, _ in iso_boxes(data, 0, len(data)))
    return False


def avif_properties(data: bytes) -> Iterator[Part]:
    """The properties of an AVIF file's primary image, in the order in which they are applied."""
    meta = _boxes(data, 0, len(data)).get(b"meta")
    if meta is None:
        return
    boxes = _boxes(data, meta[0] + 4, meta[1])  # after version and flags
    if not {b"pitm", b"iprp"} <= boxes.keys():
        return
    inner = _boxes(data, *boxes[b"iprp"])
    if not {b"ipco", b"ipma"} <= inner.keys():
        return
    properties = list(iso_boxes(data, *inner[b"ipco"]))
    start = boxes[b"pitm"][0]
    (primary,) = struct.unpack_from(">H" if data[start] == 0 else ">I", data, start + 4)
    for index in _property_indices(data, inner[b"ipma"][0], primary):
        yield properties[index - 1]


def avif_items(data: bytes) -> Iterator[bytes]:
    """The content of every item of an AVIF file: images, their parts, alpha planes, metadata."""
    meta = _boxes(data, 0, len(data)).get(b"meta")
    boxes = _boxes(data, meta[0] + 4, meta[1]) if meta else {}
    if b"iloc" not in boxes:
        return
    position, budget = boxes[b"iloc"][0], 2 * len(data)  # an item may name the same bytes again and again
    version, sizes, more_sizes = data[position], data[position + 4], data[position + 5]
    wide, position = (4 if version == 2 else 2), position + 6

    def number(size: int) -> int:
        nonlocal position
        position += size
        if position > len(data):
            raise IndexError(position)
        return int.from_bytes(data[position - size : position], "big")

    for _ in range(min(number(wide), MAX_PARTS)):
        number(wide)  # the item
        is_inside = version > 0 and number(2) & 15 == 1
        number(2)  # another file
        start = number(more_sizes >> 4) + (boxes.get(b"idat", (0, 0))[0] if is_inside else 0)
        parts = []
        for _ in range(number(2)):
            number(more_sizes & 15 if version > 0 else 0)
            offset, length = number(sizes >> 4), number(sizes & 15)
            parts.append(data[start + offset : start + offset + length if length else None])
            budget -= len(parts[-1])
            if budget < 0:
                return
        yield b"".join(parts)


def _boxes(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    return {kind: (first, last) for kind, first, last in iso_boxes(data, start, end)}


def _property_indices(data: bytes, start: int, item: int) -> list[int]:
    """The properties of an item, counted from 1, by the box `ipma`."""
    wide_items, wide_indices = data[start] > 0, data[start + 3] & 1
    (count,) = struct.unpack_from(">I", data, start + 4)
    position = start + 8
    for _ in range(min(count, MAX_PARTS)):
        (found,) = struct.unpack_from(">I" if wide_items else ">H", data, position)
        position += 4 if wide_items else 2
        number, position = data[position], position + 1
        form = f">{number}{'H' if wide_indices else 'B'}"
        indices = struct.unpack_from(form, data, position)
        if found == item:
            return [index & (0x7FFF if wide_indices else 0x7F) for index in indices]
        position += struct.calcsize(form)
    return []
