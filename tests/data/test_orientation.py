"""What is upright: one rule, whatever OpenCV and Pillow of any version think."""

import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from gfl.data.image_files import image_sizes, read_image
from gfl.data.orientation import PNG_SIGNATURE, pil_orientation, read_orientation, turn_upright

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
XMP = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {}</rdf:Description>'
FORMATS = [
    "jpg",
    "png",
    "webp",
    "tif",
    pytest.param("avif", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")),
]
over_formats = pytest.mark.parametrize("suffix", FORMATS)
over_orientations = pytest.mark.parametrize("orientation", range(1, 9))


def xmp(orientation, form="attribute"):
    attribute = f'tiff:Orientation="{orientation}">'
    element = f"><tiff:Orientation>{orientation}</tiff:Orientation>"
    return XMP.format(attribute if form == "attribute" else element).encode()


def save(path, *, orientation=None, pixels=PIXELS, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    lossless = {".webp": {"lossless": True}}.get(path.suffix, {})
    Image.fromarray(pixels).save(path, exif=exif, **lossless, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@over_orientations
def test_pixels_are_those_of_opencv_to_the_bit(tmp_path, suffix, orientation):
    path = save(tmp_path / f"a.{suffix}", orientation=orientation)
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path), cv2.IMREAD_COLOR_RGB))
    unrotated = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if orientation in (5, 6, 7, 8):
        np.testing.assert_array_equal(read_image(path, (40, 60)), unrotated)


@over_formats
@over_orientations
def test_every_reader_turns_an_image_the_same_way(tmp_path, suffix, orientation):
    path = save(tmp_path / f"a.{suffix}", orientation=orientation)
    assert read_orientation(path.read_bytes()) == orientation
    upright = read_image(path)
    assert image_sizes(path) == (upright.shape[1::-1], (60, 40))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))  # a second implementation
        loaded = turn_upright(np.asarray(image.convert("RGB")), pil_orientation(image))
    np.testing.assert_array_equal(loaded, expected)
    assert np.abs(upright.astype(int) - expected).mean() < (0.01 if suffix in ("png", "webp", "tif") else 8)
    if upright.shape == (60, 40, 3):
        stored = read_image(path, (40, 60))
        np.testing.assert_array_equal(turn_upright(stored, orientation), upright)


@pytest.mark.parametrize("form", ["attribute", "element"])
@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_xmp_counts_where_exif_says_nothing(tmp_path, suffix, form):
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        content = save(path).read_bytes()
        path.write_bytes(with_block(content, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6, form)))
    else:
        save(path, xmp=xmp(6, form))
    assert read_image(path, (60, 40)).shape == (60, 40, 3)
    assert read_image(path, (40, 60)).shape == (40, 60, 3)
    assert image_sizes(path) == ((40, 60), (60, 40))
    if suffix != "png":
        assert read_orientation(save(path, orientation=8, xmp=xmp(6)).read_bytes()) == 8


def with_block(png, kind, content):
    """A PNG with one more block before its pixels."""
    start = png.index(b"IDAT") - 4
    checksum = zlib.crc32(kind + content).to_bytes(4, "big")
    return png[:start] + len(content).to_bytes(4, "big") + kind + content + checksum + png[start:]


@pytest.mark.parametrize("compressed", [True, False])
def test_the_text_block_of_old_pngs_counts(tmp_path, compressed):
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = exif.tobytes()
    text = f"\nexif\n{len(profile):8}\n{profile.hex()}\n".encode()
    name = b"Raw profile type exif\0"
    block = (b"zTXt", name + b"\0" + zlib.compress(text)) if compressed else (b"tEXt", name + text)
    path = save(tmp_path / "a.png")
    path.write_bytes(with_block(path.read_bytes(), *block))
    assert image_sizes(path) == ((40, 60), (60, 40))
    assert read_image(path).shape == (60, 40, 3)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@over_orientations
def test_tiff_files_of_every_kind_are_turned_once(tmp_path, orientation, channels, depth):
    """OpenCV turns some kinds of TIFF and not others, whatever its flags say."""
    path = tmp_path / "a.tif"
    values = PIXELS[..., 0] if channels == 1 else PIXELS
    scale = 257 if depth is np.uint16 else 1
    cv2.imwrite(str(path), (values.astype(depth) * scale)[..., ::-1] if channels == 3 else values.astype(depth) * scale)
    content = path.read_bytes()
    path.write_bytes(with_tiff_orientation(content, orientation))
    rgb = PIXELS if channels == 3 else PIXELS[..., :1].repeat(3, axis=2)
    np.testing.assert_array_equal(read_image(path), turn_upright(rgb, orientation))
    assert image_sizes(path)[1] == (60, 40)


def with_tiff_orientation(content, orientation):
    """A little-endian TIFF whose directory, written anew at its end, has the tag."""
    start = int.from_bytes(content[4:8], "little")
    count = int.from_bytes(content[start : start + 2], "little")
    size = 12
    entries = [content[start + 2 + size * i : start + 2 + size * (i + 1)] for i in range(count)]
    entries = [entry for entry in entries if entry[:2] != b"\x12\x01"]
    entries.append(b"\x12\x01\x03\0\1\0\0\0" + orientation.to_bytes(4, "little"))
    entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))
    content += b"\0" * (len(content) % 2)
    end = len(content)
    return (
        content[:4]
        + end.to_bytes(4, "little")
        + content[8:]
        + len(entries).to_bytes(2, "little")
        + b"".join(entries)
        + b"\0" * 4
    )


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_value_beyond_1_to_8_turns_nothing(tmp_path, value):
    path = save(tmp_path / "a.jpg", orientation=value)
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path), cv2.IMREAD_COLOR_RGB))
    assert image_sizes(path) == ((60, 40), (60, 40))


@over_formats
def test_metadata_that_end_anywhere_are_no_error(tmp_path, suffix):
    content = save(tmp_path / f"a.{suffix}", orientation=6).read_bytes()
    rng = np.random.default_rng(0)
    for end in range(min(len(content), 400)):
        assert read_orientation(content[:end]) in range(1, 9)
    for _ in range(300):
        broken = bytearray(content)
        for position in rng.integers(0, min(len(content), 400), 3):
            broken[position] = rng.integers(0, 256)
        assert read_orientation(bytes(broken)) in range(1, 9)


def test_no_signature_is_no_orientation():
    assert read_orientation(b"") == read_orientation(PNG_SIGNATURE) == read_orientation(b"GIF89a") == 1
