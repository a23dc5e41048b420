"""How an image must be turned to be upright: one rule for training, evaluation, prediction, doctor and converters.

Image libraries disagree: OpenCV reads EXIF only, and turns TIFF files even where it is told not to; Pillow also reads
XMP and the text blocks of old PNGs. So the orientation is read here, pixels are decoded as stored, and turned here.

The first of these that a file has decides: EXIF (in PNG also as the text block "Raw profile type exif"), for TIFF its
own tag, for AVIF its rotation and mirror, whose standard ignores EXIF; then XMP's tiff:Orientation. Without one of
them, or with a value that is not from 1 to 8, a file is upright as stored.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

ORIENTATION, CHANNELS, XMP = 0x0112, 0x0115, 700  # tags of EXIF and TIFF
TRANSPOSED = (5, 6, 7, 8)  # orientations that exchange width and height
MAX_TEXT = 1 << 20  # bytes of a compressed text block that are unpacked
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Of AVIF: (quarter turns anticlockwise, mirror: 0 top and bottom, 1 left and right) -> orientation.
TURNS = {(0, None): 1, (0, 1): 2, (2, None): 3, (0, 0): 4, (1, 0): 5, (3, None): 6, (3, 0): 7, (1, None): 8}
TURNS |= {(2, 0): 2, (2, 1): 4, (3, 1): 5, (1, 1): 7}


class Metadata(NamedTuple):
    """The blocks of a file that may contain its orientation."""

    exif: bytes | None = None  # a TIFF structure
    xmp: bytes | None = None


def read_orientation(data: bytes) -> int:
    """The orientation, from 1 to 8, of an image file's content."""
    try:
        if data[4:8] == b"ftyp":
            return _avif_orientation(data)
        exif, xmp = _metadata(data)
        tag = _find_tag(exif, ORIENTATION) if exif else None
        return _valid(tag.value if tag else _xmp_orientation(xmp))
    except (struct.error, IndexError, ValueError, zlib.error):  # metadata that end early or are no metadata
        return 1


def pil_orientation(image: Image.Image) -> int:
    """The orientation of an image that Pillow has opened and loaded: it turns some formats itself while it loads."""
    exif = image.getexif()
    if ORIENTATION in exif:
        return _valid(exif[ORIENTATION])
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    return _valid(_xmp_orientation(xmp.encode() if isinstance(xmp, str) else xmp))


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, 3) pixels as stored, turned upright."""
    if orientation in TRANSPOSED:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    # With a side of one pixel numpy calls a mirrored image contiguous, but torch takes no negative strides.
    return image if orientation == 1 else image.copy()


def without_orientation(data: bytes) -> bytes:
    """The content of a TIFF file with orientation 1, and of any other as it is: OpenCV always obeys a TIFF's tag."""
    if data[:2] not in (b"II", b"MM"):
        return data
    try:
        tag = _find_tag(data, ORIENTATION)
    except struct.error:
        return data
    if tag is None or tag.value == 1:
        return data
    changed = bytearray(data)
    struct.pack_into(tag.format, changed, tag.position, 1)
    return bytes(changed)


def tiff_channels(data: bytes) -> int:
    """Channels of a TIFF file's content by its tag; 0 for any other, and without the tag."""
    try:
        tag = _find_tag(data, CHANNELS)
    except struct.error:
        return 0
    return tag.value if tag else 0


def _valid(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _metadata(data: bytes) -> Metadata:
    if data[:2] == b"\xff\xd8":
        return _metadata_of(_jpeg_segments(data))
    if data[:8] == PNG_SIGNATURE:
        return _metadata_of(_png_blocks(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _metadata_of(_webp_blocks(data))
    if data[:2] in (b"II", b"MM"):
        packet = _find_tag(data, XMP)
        return Metadata(data, data[packet.value : packet.value + packet.count] if packet else None)
    return Metadata()


def _metadata_of(blocks: Iterator[tuple[str, bytes]]) -> Metadata:
    """The first block of each kind."""
    found: dict[str, bytes] = {}
    for kind, content in blocks:
        found.setdefault(kind, content.removeprefix(b"Exif\0\0") if kind == "exif" else content)
    return Metadata(**found)


def _jpeg_segments(data: bytes) -> Iterator[tuple[str, bytes]]:
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8:  # padding, or a marker without content
            position += 1 if marker == 0xFF else 2
            continue
        if marker in (0xDA, 0xD9):  # the pixels begin, or the end
            return
        (length,) = struct.unpack_from(">H", data, position + 2)
        content = data[position + 4 : position + 2 + length] if marker == 0xE1 else b""
        if content.startswith(b"Exif\0"):
            yield "exif", content
        elif content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            yield "xmp", content
        position += 2 + length


def _png_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    position = 8
    texts = []
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        content = data[position + 8 : position + 8 + length] if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") else b""
        if kind == b"eXIf":
            yield "exif", content
        elif content.startswith(b"XML:com.adobe.xmp\0"):
            yield "xmp", content if content[18:19] == b"\0" else _unpack(content.split(b"\0", 5)[-1])
        elif content.startswith((b"Raw profile type exif\0", b"Raw profile type APP1\0")):
            text = content.split(b"\0", 1)[1]
            texts.append(_unpack(text[1:]) if kind == b"zTXt" else text)
        position += 12 + length
    for text in texts:  # lines: an empty one, the name, the number of bytes, then these in hexadecimal digits
        yield "exif", bytes.fromhex("".join(text.decode("latin-1").split()[2:]))


def _unpack(compressed: bytes) -> bytes:
    return zlib.decompressobj().decompress(compressed, MAX_TEXT)


def _webp_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind in (b"EXIF", b"XMP "):
            yield kind.decode().strip().lower(), data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


class _Tag(NamedTuple):
    value: int  # of a number; the position of anything longer
    count: int
    position: int  # of the value
    format: str  # of the value, for `struct`


def _find_tag(data: bytes, wanted: int) -> _Tag | None:
    """A tag of the first directory of a TIFF structure, which EXIF is too; raises `struct.error` if it ends early."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
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
            return _Tag(struct.unpack_from(form, data, at)[0], length, at, form)
    return None


def _xmp_orientation(xmp: bytes | None) -> int | None:
    """As an attribute or as an element, with any prefix's quotes."""
    found = re.search(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([0-9])\b", xmp or b"")
    return int(found[1]) if found else None


def _avif_orientation(data: bytes) -> int:
    """By the properties `irot` and `imir` of the primary image, in this order as the standard demands."""
    meta = _boxes(data, 0, len(data)).get(b"meta")
    if meta is None:
        return 1
    boxes = _boxes(data, meta[0] + 4, meta[1])  # of version and flags
    primary = _full_box_number(data, boxes[b"pitm"][0]) if b"pitm" in boxes else None
    if primary is None or b"iprp" not in boxes:
        return 1
    inner = _boxes(data, *boxes[b"iprp"])
    properties = list(_each_box(data, *inner[b"ipco"])) if b"ipco" in inner else []
    turns, mirror = 0, None
    for index in _property_indices(data, inner[b"ipma"][0], primary) if b"ipma" in inner else []:
        kind, start, _ = properties[index - 1]
        if kind == b"irot":
            turns = data[start] & 3
        elif kind == b"imir":
            mirror = data[start] & 1
    return TURNS[turns, mirror]


def _each_box(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box of the ISO base media format."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + (16 if size == 1 else 8)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
        stop = end if size == 0 else start + size
        if stop < content:
            return
        yield kind, content, min(stop, end)
        start = stop


def _boxes(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    return {kind: (first, last) for kind, first, last in _each_box(data, start, end)}


def _full_box_number(data: bytes, start: int) -> int:
    return struct.unpack_from(">H" if data[start] == 0 else ">I", data, start + 4)[0]


def _property_indices(data: bytes, start: int, item: int) -> list[int]:
    """The properties of an item, counted from 1, by the box `ipma`."""
    wide_items, wide_indices = data[start] > 0, data[start + 3] & 1
    (count,) = struct.unpack_from(">I", data, start + 4)
    position = start + 8
    for _ in range(count):
        (found,) = struct.unpack_from(">I" if wide_items else ">H", data, position)
        position += 4 if wide_items else 2
        number, position = data[position], position + 1
        form = f">{number}{'H' if wide_indices else 'B'}"
        indices = struct.unpack_from(form, data, position)
        if found == item:
            return [index & (0x7FFF if wide_indices else 0x7F) for index in indices]
        position += struct.calcsize(form)
    return []
