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

from gfl.data.image_containers import (
    JPEG_SCAN,
    JPEG_START,
    PNG_SIGNATURE,
    TIFF_ORDERS,
    avif_properties,
    find_tag,
    jpeg_segments,
    png_chunks,
    riff_chunks,
)

ORIENTATION, CHANNELS, XMP = 0x0112, 0x0115, 700  # tags of EXIF and TIFF
TRANSPOSED = (5, 6, 7, 8)  # orientations that exchange width and height
MAX_TEXT = 1 << 20  # bytes of a compressed text block that are unpacked
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")  # of PNG
EXIF_PROFILES = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
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
        tag = find_tag(exif, ORIENTATION) if exif else None
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
    if data[:2] not in TIFF_ORDERS:
        return data
    try:
        tag = find_tag(data, ORIENTATION)
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
        tag = find_tag(data, CHANNELS)
    except struct.error:
        return 0
    return tag.value if tag else 0


def _valid(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _metadata(data: bytes) -> Metadata:
    if data[:2] == JPEG_START:
        return _metadata_of(_jpeg_blocks(data))
    if data[:8] == PNG_SIGNATURE:
        return _metadata_of(_png_blocks(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _metadata_of(_webp_blocks(data))
    if data[:2] in TIFF_ORDERS:
        packet = find_tag(data, XMP)
        return Metadata(data, data[packet.value : packet.value + packet.count] if packet else None)
    return Metadata()


def _metadata_of(blocks: Iterator[tuple[str, bytes]]) -> Metadata:
    """The first block of each kind."""
    found: dict[str, bytes] = {}
    for kind, content in blocks:
        found.setdefault(kind, content.removeprefix(b"Exif\0\0") if kind == "exif" else content)
    return Metadata(**found)


def _jpeg_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    for marker, start, end in jpeg_segments(data):
        if marker == JPEG_SCAN:
            return
        if marker != 0xE1:
            continue
        if data.startswith(b"Exif\0", start):
            yield "exif", data[start:end]
        elif data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start):
            yield "xmp", data[start:end]


def _png_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Of XMP and of raw profiles only the first is unpacked: a small file may have thousands, each of 1 MiB."""
    xmp = profile = None
    for kind, start, end in png_chunks(data):
        if kind == b"eXIf":
            yield "exif", data[start:end]
        elif xmp is None and kind in TEXT_CHUNKS and data.startswith(b"XML:com.adobe.xmp\0", start):
            content = data[start:end]
            xmp = content if content[18:19] == b"\0" else _unpack(content.split(b"\0", 5)[-1])
            yield "xmp", xmp
        elif profile is None and kind in TEXT_CHUNKS and data.startswith(EXIF_PROFILES, start):
            profile = data[start:end].split(b"\0", 1)[1]
            profile = _unpack(profile[1:]) if kind == b"zTXt" else profile
    if profile:  # lines: an empty one, the name, the number of bytes, then these in hexadecimal digits
        yield "exif", bytes.fromhex("".join(profile.decode("latin-1").split()[2:]))


def _unpack(compressed: bytes) -> bytes:
    return zlib.decompressobj().decompress(compressed, MAX_TEXT)


def _webp_blocks(data: bytes) -> Iterator[tuple[str, bytes]]:
    for kind, start, end in riff_chunks(data):
        if kind in (b"EXIF", b"XMP "):
            yield kind.decode().strip().lower(), data[start:end]


def _xmp_orientation(xmp: bytes | None) -> int | None:
    """As an attribute or as an element, with any prefix's quotes."""
    found = re.search(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([0-9])\b", xmp or b"")
    return int(found[1]) if found else None


def _avif_orientation(data: bytes) -> int:
    """By the properties `irot` and `imir` of the primary image, in this order as the standard demands."""
    turns, mirror = 0, None
    for kind, start, _ in avif_properties(data):
        if kind == b"irot":
            turns = data[start] & 3
        elif kind == b"imir":
            mirror = data[start] & 1
    return TURNS[turns, mirror]
