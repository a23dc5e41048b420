"""Image files: allowed names, pixels, orientation, sizes from headers, and files that cannot be read."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gfl.data.coco import image_path, load_coco
from gfl.data.image_files import find_images, image_sizes, read_image

PIXELS = np.load(Path(__file__).parents[1] / "golden" / "resize.npz")["image"]  # (61, 83, 3)


def test_channels_are_red_green_blue(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", (7, 9))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, rgb)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_every_png_gives_three_channels(tmp_path, mode):
    grey = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (8, 4)))
    if mode == "I;16":
        grey = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    grey = grey if mode in ("L", "I;16") else grey.convert(mode)
    grey.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", (8, 8))
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    assert (image[:, 0::2] == 0).all()
    assert (image[:, 1::2] == 255).all()


def cut(suffix, share):
    data = cv2.imencode(suffix, PIXELS)[1].tobytes()
    return data[: int(len(data) * share)]


DAMAGED = [cut(suffix, share) for suffix in (".png", ".jpg") for share in (0.02, 0.5, 0.95)]


@pytest.mark.parametrize("content", DAMAGED, ids=range(6))
def test_a_damaged_image_is_named(tmp_path, refusal, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    message = refusal(read_image, path, (61, 83))
    assert str(path) in message
    assert message.code == "truncated"


@pytest.mark.parametrize("read", [read_image, image_sizes])
def test_a_missing_image_is_named(tmp_path, refusal, read):
    message = refusal(read, tmp_path / "none.png")
    assert str(tmp_path / "none.png") in message
    assert message.code == "missing_image"
    assert str(tmp_path) in refusal(read, tmp_path)  # a folder


def test_another_size_than_in_the_json_is_refused(tmp_path, refusal):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((40, 60, 3), np.uint8))
    message = refusal(read_image, path, (41, 60))
    assert all(part in message for part in (str(path), "60 x 40", "60 x 41"))
    assert message.code == "image_size"
    assert refusal(read_image, path, (60, 40)).code == "image_size"  # rotated without an EXIF tag


# EXIF


def with_orientation(path, orientation):
    """An image stored as 60 x 40 whose left third is white."""
    pixels = np.tile(255 * (np.arange(60) < 20)[:, None], (40, 1, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    return path


def white(image):
    rows, columns = (np.flatnonzero((image[..., 0] > 127).any(axis=axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_a_rotated_photograph_is_read_in_the_orientation_of_the_json(tmp_path, refusal):
    path = with_orientation(tmp_path / "a.jpg", 6)  # by 90 degrees clockwise
    upright, stored = read_image(path, (60, 40)), read_image(path, (40, 60))
    assert (upright.shape, white(upright)) == ((60, 40, 3), [0, 0, 40, 20])
    assert (stored.shape, white(stored)) == ((40, 60, 3), [0, 0, 20, 40])
    np.testing.assert_array_equal(upright, read_image(path))
    assert refusal(read_image, path, (40, 50)).code == "image_size"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_from_headers_are_those_of_decoded_images(tmp_path, suffix, orientation):
    path = with_orientation(tmp_path / f"a.{suffix}", orientation)
    upright, stored = image_sizes(path)
    assert stored == (60, 40)
    assert upright == ((60, 40) if orientation < 5 else (40, 60))
    assert read_image(path, upright[::-1]).shape == (upright[1], upright[0], 3)


def test_sizes_need_the_header_only(tmp_path, refusal):
    path = with_orientation(tmp_path / "a.png", 1)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"IDAT") + 4])
    assert image_sizes(path) == ((60, 40), (60, 40))
    for header in (content[:8], b"\xff\xd8\xff\xe0"):
        path.write_bytes(header)
        message = refusal(image_sizes, path)
        assert str(path) in message
        assert message.code == "truncated"


# File names stay in the image folder


# a/../000.png is safe only while a is no link; numpy would take 000.png\0 for 000.png.
ABSOLUTE, ABOVE = ["/etc/hostname", "//etc/hostname"], ["../outside.png", "..", "a/../../outside.png", "a/../000.png"]


@pytest.mark.parametrize("name", [*ABSOLUTE, *ABOVE, "000.png\0", "\0", "000.png\0.jpg"])
def test_a_file_name_that_leads_out_of_the_image_folder_is_refused(coco_set, refusal, name):
    made = coco_set([(60, 40), (50, 30)])
    (Path(made.images) / "a").mkdir()
    (Path(made.images).parent / "outside.png").write_bytes(made.file(0).read_bytes())
    made.tree["images"][1]["file_name"] = name
    message = refusal(made.save().load)
    assert message.startswith(f"{made.annotations}: image id 893: ")
    assert message.code == "unsafe_file_name"


@pytest.mark.parametrize("name", ["a/b.png", "./a//b.png", "...png", "a/..b.png", "b..", " \u00e9 .png", "C:\\b.png"])
def test_unusual_names_within_the_folder_are_accepted(coco_set, name):
    made = coco_set()
    (Path(made.images) / "a").mkdir()
    made.file(0).rename(Path(made.images) / name)
    made.tree["images"][0]["file_name"] = name
    assert image_path(made.save().load(), 0).is_file()


def test_symbolic_links_are_followed(coco_set, tmp_path):
    made = coco_set([(60, 40), (50, 30)])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made.file(0).rename(elsewhere / "photo.png")
    made.file(0).symlink_to(elsewhere / "photo.png")  # a file
    made.file(1).rename(elsewhere / "001.png")
    (Path(made.images) / "linked").symlink_to(elsewhere)  # a folder
    made.tree["images"][1]["file_name"] = "linked/001.png"
    assert len(made.save().load()) == 2
    (tmp_path / "images").symlink_to(made.images)  # the image folder itself
    assert len(load_coco(made.annotations, str(tmp_path / "images"))) == 2


def test_pipes_and_devices_are_no_images(tmp_path, refusal):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    assert find_images(tmp_path) == []
    for name in ("pipe.png", "device.png"):
        assert refusal(read_image, tmp_path / name).code == "not_a_file"
