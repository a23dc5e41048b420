"""The state of image files: damaged, of another size, rotated, corrupt."""

import cv2
import numpy as np
import pytest
from PIL import Image

from gfl.config import DataConfig
from gfl.data.orientation import ORIENTATION
from gfl.tools.doctor.images import (
    InspectedImage,
    image_findings,
    inspect_image,
    inspect_images,
    unlisted_image_findings,
)


def photograph(path, *, orientation=None, size=(100, 128)):
    """A JPEG of random blocks, perhaps with an EXIF orientation; `size` is the stored height and width."""
    blocks = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    pixels = cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_CUBIC)
    Image.fromarray(pixels).save(path, "JPEG", quality=95, exif=exif)
    return path


@pytest.mark.parametrize(
    ("orientation", "size", "json_size", "rotation"),
    [
        (None, (100, 128), (100, 128), ""),
        (1, (100, 128), (100, 128), ""),
        (6, (100, 128), (128, 100), ""),  # the json has the upright size
        (6, (100, 128), (100, 128), "unrotated"),
        (8, (100, 128), (100, 128), "unrotated"),
        (3, (100, 128), (100, 128), "ambiguous"),
        (2, (100, 128), (100, 128), "ambiguous"),
        (6, (90, 90), (90, 90), "ambiguous"),
    ],
)
def test_rotation_is_reported_if_the_boxes_may_not_fit(orientation, size, json_size, rotation, tmp_path):
    path = photograph(tmp_path / "a.jpg", orientation=orientation, size=size)
    assert inspect_image(path, json_size).rotation == rotation


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_found(share, suffix, tmp_path):
    path = tmp_path / f"b.{suffix}"
    cv2.imwrite(str(path), cv2.imread(str(photograph(tmp_path / "a.jpg"))))
    content = path.read_bytes()
    assert inspect_image(path, (100, 128))[:2] == ("", "")
    path.write_bytes(content[: int(len(content) * share)])
    inspected = inspect_image(path, (100, 128))
    assert inspected.code == "truncated" or inspected.decoder_warning  # older OpenCV reads it with a warning


def test_warnings_of_the_decoder_are_kept_and_not_printed(tmp_path, capfd):
    path = photograph(tmp_path / "a.jpg")
    content = bytearray(path.read_bytes())
    middle = len(content) * 2 // 3
    content[middle : middle + 40] = b"\xff\xd0" * 20  # restart markers where none belong
    path.write_bytes(content)
    inspected = inspect_image(path, (100, 128))
    assert inspected.problem == ""
    assert "JPEG" in inspected.decoder_warning
    assert capfd.readouterr().err == ""


def findings_of(found):
    return [(entry.level, *entry.items) for entry in found]


def test_damaged_and_wrongly_sized_files_are_errors(coco_set):
    made = coco_set([(60, 40), (50, 30), (30, 30)])
    made.file(0).write_bytes(made.file(0).read_bytes()[:200])
    made.tree["images"][1]["width"] += 1
    data = made.save().load()
    found = image_findings(data, inspect_images(data))
    assert findings_of(found) == [("error", "000.png"), ("error", "001.png")]
    assert all(str(made.file(row)) in entry.reasons[0] for row, entry in enumerate(found))


def test_rotated_and_corrupt_files_are_warnings(coco_set):
    data = coco_set([(60, 40), (50, 30)]).load()
    inspected = {
        0: InspectedImage(rotation="unrotated"),
        1: InspectedImage(rotation="ambiguous", decoder_warning="Corrupt"),
    }
    corrupt, unrotated, ambiguous = findings_of(image_findings(data, inspected))
    assert corrupt == ambiguous == ("warning", "001.png")
    assert unrotated == ("warning", "000.png")


def test_unreadable_files_are_grouped_by_their_cause(coco_set):
    made = coco_set([(60, 40)] * 4)
    made.file(0).write_bytes(b"<html>404</html>")
    made.file(1).write_bytes(b"\0\0\0\x20ftypisom" + bytes(50))
    made.file(2).write_bytes(b"")
    made.file(3).write_bytes(b"")
    data = made.load()
    found = image_findings(data, inspect_images(data))
    assert findings_of(found) == [("error", "002.png", "003.png"), ("error", "000.png"), ("error", "001.png")]


@pytest.mark.parametrize(
    ("high", "bit_depth", "level", "advice"),
    [
        (4080, 0, "warning", "data.bit_depth=12"),
        (65535, 0, "ok", "data.bit_depth"),
        (4080, 12, "ok", "0 to 4095"),
        (4096, 12, "warning", "clipped"),
        (21000, 0, "warning", "data.bit_depth=15"),
    ],
)
def test_the_range_in_use_of_16_bits_is_reported(high, bit_depth, level, advice, coco_set):
    made = coco_set([(60, 40), (50, 30)])
    values = np.linspace(0, high, 60 * 40).reshape(40, 60).astype(np.uint16)
    cv2.imwrite(str(made.file(0)), values)
    data = made.load()
    (found,) = image_findings(data, inspect_images(data, config=DataConfig(bit_depth=bit_depth)), bit_depth)
    assert findings_of([found]) == [(level, "000.png")]
    assert f"0 to {high}" in found.what
    assert advice in found.advice


def test_a_narrow_range_of_counts_is_given_as_a_range(coco_set):
    made = coco_set([(60, 40)])
    cv2.imwrite(str(made.file(0)), np.linspace(21000, 24000, 60 * 40).reshape(40, 60).astype(np.uint16))
    data = made.load()
    (found,) = image_findings(data, inspect_images(data))
    assert "data.bit_depth=[21000,24000]" in found.advice


def test_pixels_that_need_a_scale_are_reported_with_their_type_and_range(coco_set):
    made = coco_set([(60, 40)] * 2)
    for number in range(2):
        content = cv2.imencode(".tif", np.full((40, 60), number - 0.5, np.float32))[1]
        made.file(number).write_bytes(content.tobytes())
    data = made.load()
    (found,) = image_findings(data, inspect_images(data))
    assert (found.level, found.count) == ("error", 2)
    assert "float32" in found.what
    assert "data.bit_depth=[-0.5,0.5]" in found.advice


def test_images_that_no_json_names_are_counted_once(coco_set):
    train, val = coco_set([(60, 40), (50, 30)]), coco_set([(60, 40)], name="val")
    listed = val.tree["images"][0]
    (train.file(0).parent / "sub").mkdir()
    train.file(0).rename(train.file(0).parent / "sub" / "new.PNG")  # now missing, and not named
    listed["file_name"] = "SUB\\001.png"  # named, in another spelling
    roots = [train.images, train.images]
    first, second = unlisted_image_findings([{"images": [train.tree["images"][0]]}, val.tree], roots)
    assert findings_of(first) == [("ok", "sub/new.PNG")]
    assert "sub/new.PNG" in first[0].what
    assert second == []
