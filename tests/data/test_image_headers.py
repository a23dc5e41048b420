"""The size of an image is known from its header, in every format, before anything is decoded."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, features

from gfl.data import image_files
from gfl.data.av1 import coded_sizes
from gfl.data.image_containers import PNG_SIGNATURE
from gfl.data.image_files import image_sizes, read_image
from gfl.data.image_headers import MAX_PACKED_TEXTS, MAX_SCANS, header_size, hidden_work
from gfl.data.orientation import MAX_TEXT, read_orientation

PIXELS = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
SIZE = (83, 61)


def encoded(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(chunks):
    """A PNG with more chunks after its header."""
    data = encoded("PNG")
    end = len(PNG_SIGNATURE) + 25
    return data[:end] + chunks + data[end:]


def with_scans(data, count):
    """A JPEG that repeats its last scan."""
    table = data.rindex(b"\xff\xc4")
    return data[:-2] + data[table:-2] * count + data[-2:]


FILES = {
    "png": lambda: encoded("PNG"),
    "jpeg": lambda: encoded("JPEG"),
    "jpeg, progressive": lambda: encoded("JPEG", progressive=True),
    "jpeg, filled up": lambda: encoded("JPEG").replace(b"\xff\xdb", b"\0junk\xff\xff\xff\xdb", 1),
    "gif": lambda: encoded("GIF"),
    "bmp": lambda: encoded("BMP"),
    "bmp from the top": lambda: encoded("BMP").replace(struct.pack("<ii", *SIZE), struct.pack("<ii", 83, -61)),
    "bmp of OS/2": lambda: b"BM" + struct.pack("<IIIIHHHH", 0, 0, 26, 12, *SIZE, 1, 24) + bytes(61 * 252),
    "webp": lambda: encoded("WEBP"),
    "webp, lossless": lambda: encoded("WEBP", lossless=True),
    "webp, extended": lambda: encoded("WEBP", exif=b"Exif\0\0"),
    "tiff": lambda: encoded("TIFF"),
    "tiff, big endian": lambda: encoded("TIFF", "I;16B"),
    "tiff with long addresses": lambda: encoded("TIFF", big_tiff=True),
    "jp2": lambda: encoded("JPEG2000"),
    "jpeg 2000 codestream": lambda: encoded("JPEG2000", no_jp2=True),
    "ppm": lambda: b"P6 #a 1 2\n83#61\n# 9\r62 255\n" + bytes(PIXELS.size),
    "ppm as text": lambda: b"P3 83 61 255" + b" 7" * PIXELS.size + b"\n",
    "avif": lambda: encoded("AVIF"),
}


def can_be_made(kind):
    return {"avif": features.check("avif"), "jp2": features.check("jpg_2000")}.get(kind[:4], True)


@pytest.mark.parametrize("kind", list(filter(can_be_made, FILES)))
def test_the_size_in_the_header_is_that_of_the_decoded_pixels(kind, tmp_path):
    data = FILES[kind]()
    assert header_size(data) == SIZE
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == PIXELS.shape
    (tmp_path / "a").write_bytes(data)
    assert read_image(tmp_path / "a", (61, 83)).shape == PIXELS.shape
    assert image_sizes(tmp_path / "a") == (SIZE, SIZE)


@pytest.mark.parametrize("kind", list(filter(can_be_made, FILES)))
def test_a_header_that_ends_early_gives_no_size_or_the_right_one(kind):
    data = FILES[kind]()
    assert {header_size(data[:length]) for length in range(min(len(data), 600))} <= {None, SIZE, (83, 6)}


@pytest.mark.parametrize("kind", [3, 16, 13])  # a short, a number elsewhere in the file, an address
def test_only_a_size_that_every_reader_finds_counts(kind):
    data = bytearray(encoded("TIFF"))
    entry = data.index(struct.pack("<H", 256), struct.unpack_from("<I", data, 4)[0])
    struct.pack_into("<HHII", data, entry, 256, kind, 1, 83)
    assert header_size(bytes(data)) == (SIZE if kind == 3 else None)


def bmp(width, height):
    header = struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, width, height, 1, 8, 1, 0, 0, 0, 0, 0)
    return b"BM" + header + bytes(1026)


BOMBS = {
    "png": lambda: PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 16000, 16000, 1, 0, 0, 0, 0)),
    "gif": lambda: b"GIF89a" + struct.pack("<HH", 16000, 16000) + bytes(3) + b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0;",
    "bmp": lambda: bmp(16000, -16000),
    "webp": lambda: b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (15999).to_bytes(3, "little") * 2,
    "ppm": lambda: b"P6 16000 16000 255\n",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_nothing_is_decoded_that_contradicts_the_json_or_exceeds_the_limit(kind, tmp_path, refusal, monkeypatch):
    monkeypatch.setattr(image_files.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    path = tmp_path / "a.png"
    path.write_bytes(BOMBS[kind]())
    assert refusal(read_image, path, (64, 64)).code == "image_size"
    assert refusal(read_image, path, (16000, 16000), max_pixels=16000 * 15999).code == "too_many_pixels"
    assert refusal(read_image, path, max_pixels=100).code == "too_many_pixels"


def test_pixels_of_another_size_than_the_header_says_are_damage(tmp_path, refusal, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    monkeypatch.setattr(image_files.cv2, "imdecode", lambda *_: np.zeros((61, 82, 3), np.uint8))
    assert refusal(read_image, tmp_path / "a.png").code == "damaged_image"


def test_a_format_of_unknown_size_is_not_decoded(tmp_path, refusal):
    cv2.imwrite(str(tmp_path / "a.hdr"), PIXELS.astype(np.float32))
    for read in (read_image, image_sizes):
        assert refusal(read, tmp_path / "a.hdr").code == "damaged_image"


def avif(size, **options):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "AVIF", speed=10, **options)
    return buffer.getvalue()


@pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")
def test_an_avif_whose_frames_are_larger_than_it_says_is_not_decoded(tmp_path, refusal):
    data = avif((2000, 1200))
    assert set(coded_sizes(data)) == {(2000, 1200)}
    assert hidden_work(data) == ""
    assert set(coded_sizes(data[: len(data) // 2])) <= {(2000, 1200)}
    place = data.index(b"ispe") + 8
    (tmp_path / "a.avif").write_bytes(data[:place] + struct.pack(">II", 64, 64) + data[place + 8 :])
    assert refusal(read_image, tmp_path / "a.avif", (64, 64)).code == "damaged_image"


@pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")
def test_an_animated_avif_is_not_decoded(tmp_path, refusal):
    """Its frames may have any size, whatever its image says."""
    (tmp_path / "a.avif").write_bytes(avif((64, 64), save_all=True, append_images=[Image.new("RGB", (64, 64), "red")]))
    assert refusal(read_image, tmp_path / "a.avif", (64, 64)).code == "video"


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow has no JPEG 2000")
@pytest.mark.parametrize("no_jp2", [False, True])
def test_a_jpeg_2000_of_many_tiles_or_channels_is_not_decoded(no_jp2, tmp_path, refusal):
    data = encoded("JPEG2000", no_jp2=no_jp2, tile_size=(32, 32))
    assert hidden_work(data) == ""
    start = data.index(b"\xff\x4f\xff\x51") + 24  # of the width and height of tiles
    tiles = data[:start] + struct.pack(">II", 1, 1) + data[start + 8 :]
    channels = data[: start + 16] + struct.pack(">H", 1000) + data[start + 18 :]
    for index, content in enumerate((tiles, channels)):
        (tmp_path / f"{index}.jp2").write_bytes(content)
        assert refusal(read_image, tmp_path / f"{index}.jp2").code == "damaged_image"


def test_a_tiff_whose_tiles_are_far_larger_than_it_is_not_decoded():
    def tiff(side):
        tags = struct.pack("<HHHII" + "HHII" * 3, 4, 256, 4, 1, 64, 257, 4, 1, 64, 322, 4, 1, side, 323, 4, 1, side)
        return b"II*\0" + struct.pack("<I", 8) + tags + bytes(4)

    assert header_size(tiff(1024)) == (64, 64)
    assert hidden_work(tiff(1024)) == ""
    assert hidden_work(tiff(1100)) != ""


PACKED = {
    b"zTXt": b"Raw profile type exif\0\0",
    b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0",
    b"iCCP": b"profile\0\0",
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_png_with_thousands_of_packed_texts_is_not_decoded(kind, tmp_path, refusal):
    text = chunk(kind, PACKED[kind] + zlib.compress(bytes(10 * MAX_TEXT)))
    few, many = with_chunks(text), with_chunks(text * (MAX_PACKED_TEXTS + 1))
    (tmp_path / "a.png").write_bytes(few)
    assert read_image(tmp_path / "a.png").shape == PIXELS.shape
    (tmp_path / "a.png").write_bytes(many)
    assert refusal(read_image, tmp_path / "a.png").code == "damaged_image"
    assert read_orientation(many) == 1


def test_only_the_first_text_with_an_orientation_is_unpacked(monkeypatch):
    unpacked = []
    monkeypatch.setattr("gfl.data.orientation._unpack", lambda content: unpacked.append(content) or b"")
    read_orientation(with_chunks(b"".join(chunk(kind, start) for kind, start in PACKED.items()) * 50))
    assert len(unpacked) == 2


def test_a_jpeg_with_thousands_of_scans_is_not_decoded(tmp_path, refusal):
    (tmp_path / "a.jpg").write_bytes(with_scans(encoded("JPEG", progressive=True), MAX_SCANS))
    assert refusal(read_image, tmp_path / "a.jpg").code == "damaged_image"
    assert hidden_work(with_scans(encoded("JPEG"), MAX_SCANS)) == ""  # libjpeg refuses them itself
    camera = encoded("JPEG", progressive=True) + b"\xff\xda" * 1000  # a video that the camera appended
    assert hidden_work(camera) == ""
