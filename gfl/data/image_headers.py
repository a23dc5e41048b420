"""What decoding an image file costs: the size by which OpenCV takes memory, and work that this size does not show.

A size is read from the very field from which OpenCV's decoder of the format reads it, since a file may contradict
itself. A format without a function here is not decoded at all.
"""

import re
import struct
from collections.abc import Callable, Iterable

from gfl.data.av1 import coded_sizes
from gfl.data.image_containers import (
    JPEG_SCAN,
    JPEG_START,
    PNG_SIGNATURE,
    TIFF_ORDERS,
    avif_properties,
    find_tag,
    iso_boxes,
    jpeg_segments,
)

Size = tuple[int, int]  # width, height

JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JP2_SIGNATURE, JP2_CODESTREAM = b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"
TIFF_WIDTH, TIFF_HEIGHT, TIFF_CHANNELS = 256, 257, 277  # tags
TIFF_TILE = 322, 323  # tags of width and height
PNM = re.compile(rb"P[1-6](?=\s)(?:\s|#[^\r\n]*[\r\n])*([0-9]+)[^0-9](?:\s|#[^\r\n]*[\r\n])*([0-9]+)")
MAX_SCANS = 64  # of a JPEG, each of which visits every pixel; encoders make about 10
MAX_TILE = 2**20  # pixels of an AVIF's or TIFF's tile, beside four times those of the image
MAX_JP2_TILES = 4096  # for each of which OpenJPEG takes 12 kB: 16384 x 16384 pixels in tiles of 256 x 256
MAX_JP2_CHANNELS = 4
MAX_PACKED_TEXTS = 32  # of a PNG, each of which libpng unpacks to up to 8 MB; image editors write about 5


def header_size(data: bytes) -> Size | None:
    """(width, height) of an image file's content as stored; None for an unknown format, damage, or an empty image."""
    try:
        size = _reader(data)(data)
    except (struct.error, IndexError):  # it ends early
        return None
    return size if size and min(size) > 0 else None


def tiff_channels(data: bytes) -> int:
    """Channels of a TIFF file's content by its tag; 0 for any other, and without the tag."""
    try:
        tag = find_tag(data, TIFF_CHANNELS)
    except struct.error:  # it ends early
        return 0
    return tag.value if tag else 0


def hidden_work(data: bytes) -> str:
    """What makes decoding a file of known size cost far more than its size; "" for an ordinary file."""
    try:
        if data[:2] == JPEG_START:
            return _many_scans(data)
        if data[:8] == PNG_SIGNATURE:
            texts = sum(map(data.count, (b"zTXt", b"iTXt", b"iCCP")))
            return f"{texts} packed texts" if texts > MAX_PACKED_TEXTS else ""
        if data.startswith((JP2_SIGNATURE, JP2_CODESTREAM)):
            return _many_jp2_tiles(data)
        if data[:2] in TIFF_ORDERS:
            return _large_tiles(data)
        return _large_frames(data) if data[4:8] == b"ftyp" else ""
    except (struct.error, IndexError):  # it ends early, as its decoder will find
        return ""


def _many_scans(data: bytes) -> str:
    frame, scan = _jpeg_start(data)
    # Only a progressive JPEG, or one whose first scan lacks a component, may have several.
    if data[frame - 3] in (0xC0, 0xC1) and data[scan] >= data[frame + 5]:
        return ""
    if data.count(bytes((0xFF, JPEG_SCAN))) <= MAX_SCANS:
        return ""
    scans = sum(marker == JPEG_SCAN for marker, _, _ in jpeg_segments(data))  # without what cameras append
    return f"{scans} scans" if scans > MAX_SCANS else ""


def _many_jp2_tiles(data: bytes) -> str:
    start = _jp2_codestream(data)
    right, bottom, _, _, width, height, left, top, channels = struct.unpack_from(">8IH", data, start + 8)
    tiles = -(-(right - left) // width) * -(-(bottom - top) // height) if width and height else 0
    if tiles <= MAX_JP2_TILES and channels <= MAX_JP2_CHANNELS:
        return ""
    return f"{tiles} tiles of {channels} channels"


def _large_tiles(data: bytes) -> str:
    tags = [find_tag(data, tag) for tag in TIFF_TILE]
    return _beyond("tiles", [(tags[0].value, tags[1].value)], _tiff(data)) if all(tags) else ""


def _large_frames(data: bytes) -> str:
    return _beyond("frames", coded_sizes(data), _avif(data))


def _beyond(what: str, parts: Iterable[Size], image: Size) -> str:
    """The first part of an image that is far larger than the image; tiles may reach beyond it."""
    for width, height in parts:
        if width * height > 4 * image[0] * image[1] + MAX_TILE:
            return f"{what} of {width} x {height} for {image[0]} x {image[1]} pixels"
    return ""


def _reader(data: bytes) -> Callable[[bytes], Size | None]:
    for start, reader in READERS.items():
        if data.startswith(start):
            return reader
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp
    return _avif if data[4:8] == b"ftyp" else _pnm


def _png(data: bytes) -> Size | None:
    return struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" else None


def _jpeg(data: bytes) -> Size | None:
    frame, _ = _jpeg_start(data)
    return struct.unpack_from(">HH", data, frame + 1)[::-1] if frame else None


def _jpeg_start(data: bytes) -> tuple[int, int]:
    """Positions of the first frame's and the first scan's header, which precede the pixels; zeros without them."""
    frame = 0
    for marker, start, _ in jpeg_segments(data):
        if marker == JPEG_SCAN:
            return (frame, start) if frame else (0, 0)
        if marker in JPEG_FRAMES and not frame:
            frame = start
    return 0, 0


def _gif(data: bytes) -> Size:
    return struct.unpack_from("<HH", data, 6)


def _bmp(data: bytes) -> Size | None:
    (header,) = struct.unpack_from("<i", data, 14)
    if header == 12:
        return struct.unpack_from("<HH", data, 18)
    if header < 36:
        return None
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # below 0: from top to bottom


def _webp(data: bytes) -> Size | None:
    if data[12:16] == b"VP8X":
        width, height = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
        return width, height
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff(data: bytes) -> Size | None:
    tags = find_tag(data, TIFF_WIDTH), find_tag(data, TIFF_HEIGHT)
    # Of other types the value lies elsewhere.
    if any(tag is None or tag.count != 1 or tag.kind not in (1, 3, 4) for tag in tags):
        return None
    return tags[0].value, tags[1].value


def _jp2_codestream(data: bytes) -> int | None:
    """The position of the codestream in a JPEG 2000 file, which may also be nothing else."""
    if data.startswith(JP2_CODESTREAM):
        return 0
    return next((start for kind, start, _ in iso_boxes(data, 0, len(data)) if kind == b"jp2c"), None)


def _jp2(data: bytes) -> Size | None:
    start = _jp2_codestream(data)
    if start is None or not data.startswith(JP2_CODESTREAM, start):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    return right - left, bottom - top


def _avif(data: bytes) -> Size | None:
    for kind, start, _ in avif_properties(data):
        if kind == b"ispe":
            return struct.unpack_from(">II", data, start + 4)
    return None


def _pnm(data: bytes) -> Size | None:
    found = PNM.match(data)
    if found is None or max(map(len, found.groups())) > 10:
        return None
    return int(found[1]), int(found[2])


READERS: dict[bytes, Callable[[bytes], Size | None]] = {
    PNG_SIGNATURE: _png,
    JPEG_START: _jpeg,
    b"GIF8": _gif,
    b"BM": _bmp,
    JP2_SIGNATURE: _jp2,
    JP2_CODESTREAM: _jp2,
    **dict.fromkeys(TIFF_ORDERS, _tiff),
}
