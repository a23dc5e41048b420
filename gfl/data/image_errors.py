"""Why an image file cannot be read: each cause has its own message and code."""

import io
import os
import warnings
from pathlib import Path

from PIL import Image

from gfl.common.errors import UserError
from gfl.common.file_kinds import is_url, recognise_content, url_message
from gfl.common.text import shell_command
from gfl.data.image_containers import has_track
from gfl.data.image_headers import header_size, tiff_channels

OPENCV_MAX_PIXELS = 1 << 30  # its default
MAX_PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
MAX_CHANNELS = 4  # that OpenCV reads
READ_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "GIF", "JPEG2000", "PPM")  # Pillow's names
# Brands of the ISO base media format that are images; all others are videos.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


class BadImage(UserError):
    """An image file that is missing, damaged or of another size than the json says."""


def url_error(path: str | os.PathLike) -> BadImage:
    """The error for an address of the web where an image is wanted."""
    return BadImage(url_message(path), code="url")


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
    return BadImage(f"cannot read image {path}: {reason}; add the file", code="missing_image")


def out_of_memory(path: Path, shape: str = "") -> UserError:
    """The error for an image that does not fit into memory: no fault of the file, so none that is skipped."""
    return UserError(
        f"not enough memory to read image {path}{shape}; lower data.workers or cut the image into tiles",
        code="out_of_memory",
    )


def check_is_image(path: Path, data: bytes) -> None:
    """Raises `BadImage` for content that is recognisably something else than an image."""
    if not data:
        raise BadImage(f"image {path} is empty (0 bytes); restore it", code="empty_image")
    if is_video(data):
        command = f"mkdir frames && ffmpeg -i {shell_command(path)} frames/%06d.png"
        raise BadImage(f"image {path} is in fact a video; extract its frames first: {command}", code="video")
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and not _has_brand(data, b"avif"):
        raise BadImage(f"image {path} is a HEIC file, which is not supported; convert it to JPEG or PNG", code="heic")
    if data[4:8] == b"ftyp" and has_track(data):
        raise BadImage(f"image {path} is an animated AVIF; convert its frames to images of their own", code="video")
    if (kind := recognise_content(data)) is not None:
        raise BadImage(f"image {path} is in fact {kind}; convert or restore it", code="not_an_image")


def undecoded(path: Path, data: bytes) -> BadImage:
    """The error for a file that cannot be decoded, by its content."""
    if is_cut_off(data):
        return BadImage(f"image {path} is cut off: its end is missing; restore it", code="truncated")
    if (channels := tiff_channels(data)) > MAX_CHANNELS:
        return BadImage(f"image {path} is a TIFF of {channels} channels; convert it to three", code="channels")
    size = header_size(data)
    if size is None and (name := _other_image_format(data)):
        return BadImage(f"image {path} is of format {name}, which is not read; convert it to PNG", code="format")
    what = "damaged or of an unknown format"
    if size:
        what = f"damaged or of an unsupported kind: its header says {size[0]} x {size[1]}, its pixels do not follow"
    return BadImage(f"image {path} is {what}; restore or convert it", code="damaged_image")


def _other_image_format(data: bytes) -> str | None:
    """Pillow's name of an image format that is not read; None for those that are, and for content unknown to it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, which do not matter here
            with Image.open(io.BytesIO(data)) as image:
                return image.format if image.format not in READ_FORMATS else None
    except Exception:  # a damaged header can raise anything
        return None


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
    if not data.startswith(b"GIF8") and data[:1] == data[188:189] == data[376:377] == b"G":  # MPEG transport stream
        return True
    starts = (b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"OggS")
    return data.startswith(starts) or data[4:8] in (b"moov", b"mdat", b"wide")


def _has_brand(data: bytes, brand: bytes) -> bool:
    return brand in data[8 : min(int.from_bytes(data[:4], "big"), 256)]
