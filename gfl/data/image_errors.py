"""Why an image file cannot be read: each cause has its own message and code."""

import os
import re
from pathlib import Path

from gfl.common.errors import UserError

OPENCV_MAX_PIXELS = 1 << 30  # its default
MAX_PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
HTTP = re.compile(r"(?i)^(https?|ftp|s3|gs|file|data):")
# Brands of the ISO base media format that are images; all others are videos.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
OTHER_FORMATS = (  # start of the file, name
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8BPS", "a Photoshop document"),
    (b"version https://git-lfs", "a pointer of Git LFS instead of the image (run git lfs pull)"),
)


class BadImage(UserError):
    """An image file that is missing, damaged or of another size than the json says."""


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is an address of the web instead."""
    return HTTP.match(os.fspath(path)) is not None


def url_error(path: str | os.PathLike) -> BadImage:
    """The error for an address of the web where a path is wanted."""
    # Path turns // into /; the slash is put back, so that the address appears as it was given.
    address = re.sub(r"^(\w+):/+", r"\1://", os.fspath(path))
    return BadImage(f"{address} is an address, not a file; download it and give the file's path", code="url")


def opencv_max_pixels() -> int:
    """Pixels of the largest image that OpenCV reads."""
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    return int(text) if text.isdecimal() else OPENCV_MAX_PIXELS


def check_pixel_count(path: Path | str, width: int, height: int, max_pixels: int) -> None:
    """Raises `BadImage` for an image that is larger than the config's `data.max_pixels`, or too large for OpenCV."""
    limit = min(max_pixels, opencv_max_pixels())
    if width * height <= limit:
        return
    option = "data.max_pixels" if limit < opencv_max_pixels() else f"the environment variable {MAX_PIXELS_VARIABLE}"
    raise BadImage(
        f"image {path} is {width} x {height}, {width * height:,} pixels, more than the limit of {limit:,}; cut it "
        f"into tiles, or raise {option}",
        code="too_many_pixels",
    )


def unopened(path: Path, error: OSError | ValueError) -> BadImage:
    """The error for a file that cannot be opened."""
    if path.is_dir():
        return BadImage(f"{path} is a folder, not an image; give the path of a file", code="folder")
    if is_url(path):
        return url_error(path)
    reason = getattr(error, "strerror", None) or error
    return BadImage(f"cannot read image {path}: {reason}; add the file or leave it out", code="missing_image")


def out_of_memory(path: Path, shape: str = "") -> UserError:
    """The error for an image that does not fit into memory: no fault of the file, so none that is skipped."""
    return UserError(
        f"not enough memory to read image {path}{shape}; lower data.workers or cut the image into tiles",
        code="out_of_memory",
    )


def check_is_image(path: Path, data: bytes) -> None:
    """Raises `BadImage` for content that is recognisably something else than an image."""
    if not data:
        raise BadImage(f"image {path} is empty (0 bytes); restore it or leave it out", code="empty_image")
    if is_video(data):
        raise BadImage(
            f"image {path} is in fact a video; extract its frames first, for example with "
            "ffmpeg -i VIDEO frames/%06d.png",
            code="video",
        )
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and not _has_brand(data, b"avif"):
        raise BadImage(f"image {path} is a HEIC file, which is not supported; convert it to JPEG or PNG", code="heic")
    if (kind := _other_format(data)) is not None:
        raise BadImage(f"image {path} is in fact {kind}; restore it or leave it out", code="not_an_image")


def is_cut_off(data: bytes) -> bool:
    """Whether the end of a JPEG, PNG, WebP or BMP file is missing."""
    if data[:2] == b"\xff\xd8":
        return b"\xff\xd9" not in data[-4096:]  # some cameras append other data
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" not in data[-4096:]
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return data[:2] == b"BM" and int.from_bytes(data[2:6], "little") > len(data)


def is_video(data: bytes) -> bool:
    """Whether a file's content is a video: MP4 and its relatives, AVI, Matroska, MPEG, Flash, Windows Media, Ogg."""
    if data[4:8] == b"ftyp":
        return data[8:12] not in HEIF_BRANDS and not _has_brand(data, b"avif") and not _has_brand(data, b"avis")
    if data[:4] == b"RIFF":
        return data[8:12] in (b"AVI ", b"AVIX")
    starts = (b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"OggS")
    return data.startswith(starts) or data[4:8] in (b"moov", b"mdat", b"wide")


def _has_brand(data: bytes, brand: bytes) -> bool:
    return brand in data[8 : min(int.from_bytes(data[:4], "big"), 256)]


def _other_format(data: bytes) -> str | None:
    for start, kind in OTHER_FORMATS:
        if data.startswith(start):
            return kind
    text = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<body")):
        return "an HTML page, as servers send instead of a missing file"
    if b"<svg" in text:
        return "a drawing in SVG"
    if text.startswith((b"<?xml", b"<")):
        return "an XML file"
    is_pnm = re.match(rb"p[1-7]\s", text) is not None
    if not is_pnm and all(byte >= 32 or byte in b"\t\r\n\f" for byte in data[:512]) and _decodes(data[:512]):
        return "a text file"
    return None


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:  # a character cut at the end is fine
        return error.start >= len(data) - 3 and len(data) > 8
    return True
