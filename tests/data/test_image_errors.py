"""Files that cannot be read as images: each cause has its own code, and the message names what helps."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from gfl.common.errors import UserError
from gfl.common.file_kinds import is_url
from gfl.config_file import parse_overrides
from gfl.data import image_files
from gfl.data.image_errors import BadImage, url_error
from gfl.data.image_files import image_sizes, range_option, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
readers = pytest.mark.parametrize("read", [read_image, image_sizes])


def encoded(suffix):
    return cv2.imencode(suffix, PIXELS)[1].tobytes()


def png_of_size(width, height, rows=None):
    """A PNG of one bit per pixel, all of them black, of which only the first `rows` are there."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pack = zlib.compressobj(9)
    block = bytes((width + 7) // 8 + 1) * 100
    data = b"".join(pack.compress(block) for _ in range((rows or height) // 100)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tga():
    """An image that Pillow reads and OpenCV does not."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "TGA")
    return file.getvalue()


OTHERS = {
    "empty": (b"", "empty_image"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "not_an_image"),
    "json": (b'{"error": "no access"}', "not_an_image"),
    "text": ("Zugriff verweigert: geh\u00f6rt dir nicht".encode(), "not_an_image"),
    "xml": (b'\xef\xbb\xbf<?xml version="1.0"?><Error/>', "not_an_image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3", "not_an_image"),
    "zip": (b"PK\x03\x04\x14\0", "not_an_image"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not_an_image"),
    "mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64), "video"),
    "mov": (b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(64), "video"),
    "avi": (b"RIFF\x24\0\0\0AVI LIST" + bytes(64), "video"),
    "mkv": (b"\x1a\x45\xdf\xa3" + bytes(64), "video"),
    "ts": ((b"G" + bytes(187)) * 3, "video"),
    "dicom": (bytes(128) + b"DICM" + bytes(64), "not_an_image"),
    "numpy": (b"\x93NUMPY\1\0" + bytes(64), "not_an_image"),
    "jpeg xl": (b"\xff\x0a" + bytes(64), "not_an_image"),
    "tga": (tga(), "format"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "heic"),
    "noise": (bytes(range(128, 256)), "damaged_image"),
    "jpeg": (encoded(".jpg")[:200], "truncated"),
    "png": (encoded(".png")[:20], "truncated"),
}


@readers
@pytest.mark.parametrize("kind", OTHERS)
def test_every_cause_has_its_own_code(tmp_path, refusal, kind, read):
    content, code = OTHERS[kind]
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    error = refusal(read, path)
    assert error.code == code
    assert str(path) in error


def test_a_text_of_numbers_is_still_an_image(tmp_path):
    (tmp_path / "a.ppm").write_text("P3\n2 1\n255\n255 0 0 0 0 255\n")
    assert read_image(tmp_path / "a.ppm").tolist() == [[[255, 0, 0], [0, 0, 255]]]


@readers
def test_a_folder_and_an_address_are_named_as_such(tmp_path, refusal, read):
    (tmp_path / "a.jpg").mkdir()
    assert refusal(read, tmp_path / "a.jpg").code == "folder"
    error = refusal(read, image_files.Path("https://example.org//a/b.jpg"))
    assert error.code == "url"
    assert "https://example.org/" in error


def test_an_address_is_shown_as_it_was_given():
    address = "https://example.org/a//b.jpg?x=1"
    assert is_url(address)
    assert address in str(url_error(address))
    assert not is_url("C:/a.jpg")
    assert not is_url("https.jpg")


@pytest.mark.parametrize(
    ("read", "limit", "option"),
    [(read_image, "268,435,456", "data.max_pixels"), (image_sizes, "1,073,741,824", "OPENCV_IO_MAX_IMAGE_PIXELS")],
)
def test_the_limit_of_pixels_is_named(tmp_path, refusal, read, limit, option):
    (tmp_path / "a.png").write_bytes(png_of_size(40000, 30000, rows=100))
    error = refusal(read, tmp_path / "a.png")
    assert error.code == "too_many_pixels"
    assert all(part in error for part in ("40000 x 30000", limit, option))


def test_an_image_beyond_the_limit_of_pillow_is_read(tmp_path):
    """180 megapixels."""
    (tmp_path / "a.png").write_bytes(png_of_size(20000, 9000))
    assert image_sizes(tmp_path / "a.png") == ((20000, 9000), (20000, 9000))


def test_too_little_memory_is_no_bad_image_which_training_would_skip(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(".png"))

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(image_files.cv2, "imdecode", fail)
    with pytest.raises(UserError) as raised:
        read_image(tmp_path / "a.png")
    assert raised.value.code == "out_of_memory"
    assert not isinstance(raised.value, BadImage)
    assert "83 x 61" in str(raised.value)


# More than 8 bits


def float_tiff(path, values):
    Image.fromarray(values.astype(np.float32)).save(path)
    return path


def test_pixels_of_floats_need_a_scale(tmp_path, refusal):
    path = float_tiff(tmp_path / "a.tif", np.linspace(0, 1, 256).reshape(16, 16))
    error = refusal(read_image, path)
    assert error.code == "pixel_type"
    assert "float32" in error
    assert "data.bit_depth=[0,1]" in error
    image = read_image(path, (16, 16), bit_depth=(0.0, 1.0))
    np.testing.assert_array_equal(image, np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2))


@pytest.mark.parametrize(("low", "high"), [(7, 7), (0, 0), (0.5, 0.5), (1000000.1, 1000000.2), (-3e9, -3e9), (0, 1e-7)])
def test_the_range_that_is_advised_can_be_set_and_holds_the_values(low, high):
    first, last = parse_overrides([range_option(low, high)])["data"]["bit_depth"]
    assert first < last
    assert first == pytest.approx(low, rel=1e-5)
    assert last >= high - 1e-5 * abs(high)


def test_a_tiff_of_many_channels_is_named(tmp_path, refusal):
    tags = [(256, 2), (257, 2), (258, 8), (259, 1), (262, 1), (273, 8), (277, 5), (278, 2), (279, 20)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 28) + bytes(20) + directory)
    error = refusal(read_image, tmp_path / "a.tif")
    assert error.code == "channels"
    assert "5 channels" in error


def test_values_without_a_number_become_black(tmp_path):
    values = np.full((4, 4), 2.0)
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    image = read_image(float_tiff(tmp_path / "a.tif", values), bit_depth=(0.0, 1.0))
    assert image[0, :, 0].tolist() == [0, 255, 0, 255]


@pytest.mark.parametrize(
    ("bit_depth", "expected"), [(0, [0, 7, 15, 15]), (12, [0, 128, 255, 255]), ((2048.0, 4095.0), [0, 0, 255, 255])]
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_as_the_config_says(tmp_path, suffix, bit_depth, expected):
    values = np.array([[0, 2048, 4095, 4095 if bit_depth == 0 else 60000]], np.uint16)
    for name, pixels in (("grey", values), ("colours", np.stack([values] * 3, axis=2))):
        cv2.imwrite(str(tmp_path / f"{name}.{suffix}"), pixels)
        image = read_image(tmp_path / f"{name}.{suffix}", bit_depth=bit_depth)
        assert (image.shape, image.dtype) == ((1, 4, 3), np.uint8)
        assert np.abs(image[0, :, 0].astype(int) - expected).max() <= 1  # libraries divide by 256 or by 257


def test_channels_keep_their_order_when_scaled(tmp_path):
    values = np.zeros((2, 2, 3), np.uint16)
    values[..., 0] = 4095  # blue, for OpenCV
    cv2.imwrite(str(tmp_path / "a.png"), values)
    assert read_image(tmp_path / "a.png", bit_depth=12)[0, 0].tolist() == [0, 0, 255]
    cv2.imwrite(str(tmp_path / "b.tif"), values.astype(np.float32))
    assert read_image(tmp_path / "b.tif", bit_depth=12)[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bit_depth", [0, 16])
def test_sixteen_bit_colours_are_those_of_the_file_one_after_the_other(tmp_path, suffix, bit_depth):
    """Pixels that a decoder leaves as it found the memory would be those of the image before."""
    for seed in range(3):
        values = np.random.default_rng(seed).integers(0, 2**16, (40, 50, 3), np.uint16)
        cv2.imwrite(str(tmp_path / f"a.{suffix}"), values)
        image = read_image(tmp_path / f"a.{suffix}", bit_depth=bit_depth)
        assert np.abs(image[..., ::-1] - values / 257).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_eight_bits_are_not_scaled(tmp_path, suffix):
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), PIXELS)
    path = tmp_path / f"a.{suffix}"
    np.testing.assert_array_equal(read_image(path, bit_depth=12), read_image(path))


def test_a_gif_is_read(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.gif")
    assert read_image(tmp_path / "a.gif", (61, 83)).shape == (61, 83, 3)
