"""Soft shapes: the annotated blur of the sides is measured in the images and in the noise of the boxes."""

import json
from argparse import Namespace
from pathlib import Path
from statistics import NormalDist

import cv2
import numpy as np
import pytest

from gfl.data import shapes
from gfl.data.shapes import IMAGE_SIZE, KINDS, Scene, alpha_mask, render_sample, write_shapes

NUM_TRAIN, NUM_VAL, SEED = 12, 6, 3


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "set"
    assert write_shapes(out, NUM_TRAIN, NUM_VAL, SEED)
    return out


@pytest.fixture(scope="module")
def samples() -> list:
    return [render_sample(np.random.default_rng(seed), noisy=True)[1] for seed in range(60)]


@pytest.fixture(scope="module")
def objects(samples) -> list:
    return [shape for sample in samples for shape in sample]


def load(out: Path, split: str) -> dict:
    return json.loads((out / "annotations" / f"instances_{split}.json").read_text())


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def area(sides: np.ndarray) -> float:
    return float(np.prod((sides[2:] - sides[:2]).clip(0)))


# The blur of a side, as measured in the opacity


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("roll", range(4))
def test_blur_and_position_of_each_side_are_recovered_from_the_mask(kind, roll):
    sides = np.array([20.3, 30.6, 101.2, 91.1])
    sigmas = np.roll([0.6, 6.0, 7.0, 1.5], roll)
    alpha = alpha_mask(kind, sides, sigmas)
    x, y = ((sides[:2] + sides[2:]) / 2).astype(int)
    profiles = [alpha[y], alpha[:, x], alpha[y], alpha[:, x]]
    centres = np.arange(IMAGE_SIZE) + 0.5
    for profile, side, sigma, inwards in zip(profiles, sides, sigmas, [1, 1, -1, -1], strict=True):
        # Through the inverse CDF a Gaussian edge is a line: it crosses zero at the side, with the slope 1 / sigma.
        depths = inwards * (centres - side)
        near = (depths > -2 * sigma) & (depths < 1.5 * sigma)
        slope, offset = np.polyfit(depths[near], [NormalDist().inv_cdf(value) for value in profile[near]], 1)
        assert 1 / slope == pytest.approx(sigma, rel=0.03)
        assert -offset / slope == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_the_half_opaque_outline_touches_all_four_sides(kind):
    sides = np.array([20.0, 30.0, 100.0, 90.0])
    solid = alpha_mask(kind, sides, np.array([9.0, 0.5, 2.0, 7.0])) > 0.5
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == sides.tolist()


def test_a_rectangle_is_the_product_of_four_gaussian_cdfs():
    sides, sigmas = np.array([-10.0, 40.2, 50.7, 170.0]), np.array([3.0, 0.4, 5.0, 12.0])
    alpha = alpha_mask("rectangle", sides, sigmas)
    for row, column in [(38, 48), (40, 3), (159, 52), (100, 20)]:
        depths = np.array([column + 0.5, row + 0.5, -column - 0.5, -row - 0.5]) - sides * [1, 1, -1, -1]
        assert alpha[row, column] == pytest.approx(np.prod([NormalDist().cdf(z) for z in depths / sigmas]), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_opacity_stays_in_range_and_changes_smoothly(kind):
    alpha = alpha_mask(kind, np.array([20.0, 10.0, 120.0, 60.0]), np.array([12.0, 3.0, 4.0, 6.0]))
    assert alpha.shape == (IMAGE_SIZE, IMAGE_SIZE)
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    # No outline is sharper than a third of the softest side here, 1 px: a step per pixel of at most phi(0) = 0.4.
    assert max(np.abs(np.diff(alpha, axis=0)).max(), np.abs(np.diff(alpha, axis=1)).max()) < 0.4


# The objects


def test_sigmas_sizes_positions_and_counts_keep_their_limits(samples, objects):
    extents = np.array([shape.sides[2:] - shape.sides[:2] for shape in objects])
    sigmas = np.array([shape.sigmas for shape in objects])
    assert extents.min() >= 28
    assert extents.max() <= 110
    assert (extents.max(axis=1) <= 2.5 * extents.min(axis=1)).all()
    assert sigmas.min() >= 0.4
    assert (sigmas <= np.minimum(12, 0.12 * np.tile(extents, 2)) + 1e-9).all()
    inside = np.array([area(shape.sides.clip(0, IMAGE_SIZE)) / area(shape.sides) for shape in objects])
    assert inside.min() >= 0.55
    assert 0.05 < (inside < 1).mean() < 0.4
    # The four sides are independent, and soft and sharp ones both occur.
    assert np.abs(np.corrcoef(sigmas.T / np.tile(extents, 2).T) - np.eye(4)).max() < 0.2
    assert sigmas.min() < 0.5
    assert sigmas.max() > 6
    assert {len(sample) for sample in samples} == {1, 2, 3, 4, 5, 6}
    assert {shape.kind for shape in objects} == set(KINDS)


def test_some_objects_overlap_but_none_is_hidden(samples):
    overlaps = 0
    for sample in samples:
        for index, shape in enumerate(sample):
            (left, top, right, bottom), (x, y) = shape.sides, (shape.sides[:2] + shape.sides[2:]) / 2
            middles = np.array([[left, y], [x, top], [right, y], [x, bottom]])
            box = shape.sides.clip(0, IMAGE_SIZE)
            hidden = np.zeros((2 * IMAGE_SIZE, 2 * IMAGE_SIZE), dtype=bool)  # in half pixels
            for later in (other.sides for other in sample[index + 1 :]):
                assert not ((middles > later[:2]) & (middles < later[2:])).all(axis=1).any()
                visible = later.clip(0, IMAGE_SIZE)
                shared = area(np.concatenate([np.maximum(box[:2], visible[:2]), np.minimum(box[2:], visible[2:])]))
                overlaps += shared > 0
                assert shared / (area(box) + area(visible) - shared) <= 0.4
                x1, y1, x2, y2 = np.rint(2 * visible).astype(int)
                hidden[y1:y2, x1:x2] = True
            x1, y1, x2, y2 = np.rint(2 * box).astype(int)
            assert hidden[y1:y2, x1:x2].mean() <= 0.4
    assert overlaps > 10


def test_an_object_stands_out_from_what_is_behind_its_outline():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        canvas, sides = shapes._background(rng), np.array([-10.0, 30.0, 60.0, 90.0])
        canvas[:, 50:] = 255 - canvas[:, 50:]  # behind the right side lies something else
        contrast = np.linalg.norm(shapes._paint(rng, canvas, sides) - canvas, axis=-1)
        outline = [contrast[30:90, 60], contrast[30, :60], contrast[90, :60]]
        assert np.quantile(np.concatenate(outline), 0.1) > 20


def test_training_boxes_are_drawn_from_the_truncated_normal_of_each_side(objects):
    z = np.array([(shape.annotated - shape.sides) / shape.sigmas for shape in objects])
    assert np.abs(z).max() <= 2 + 1e-6
    assert z.mean() == pytest.approx(0, abs=0.08)
    assert z.std() == pytest.approx(0.8796, abs=0.05)  # of a normal cut at two sigmas
    assert np.quantile(z, 0.8413) == pytest.approx(0.93, abs=0.12)
    assert np.abs(np.corrcoef(z.T) - np.eye(4)).max() < 0.2


def test_validation_is_the_same_image_with_the_true_sides():
    noisy_image, noisy = render_sample(np.random.default_rng(5), noisy=True)
    image, exact = render_sample(np.random.default_rng(5), noisy=False)
    assert np.array_equal(image, noisy_image)
    assert image.dtype == np.uint8
    assert all(np.array_equal(shape.annotated, shape.sides) for shape in exact)
    assert not any(np.array_equal(shape.annotated, shape.sides) for shape in noisy)


# The files


@pytest.mark.parametrize(("split", "count"), [("train", NUM_TRAIN), ("val", NUM_VAL)])
def test_the_json_is_coco_and_fits_the_images(written, split, count):
    content = load(written, split)
    assert [category["name"] for category in content["categories"]] == list(KINDS)
    assert len(content["images"]) == count
    for image in content["images"]:
        pixels = cv2.imread(str(written / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3) == (IMAGE_SIZE, IMAGE_SIZE, 3)
    annotations = content["annotations"]
    assert [annotation["id"] for annotation in annotations] == list(range(1, len(annotations) + 1))
    assert {annotation["image_id"] for annotation in annotations} == {image["id"] for image in content["images"]}
    assert {annotation["category_id"] for annotation in annotations} <= {1, 2, 3, 4}
    x, y, width, height = np.array([annotation["bbox"] for annotation in annotations]).T
    assert min(x.min(), y.min()) >= 0
    assert min(width.min(), height.min()) > 5
    assert max((x + width).max(), (y + height).max()) <= IMAGE_SIZE + 1e-9
    assert [annotation["area"] for annotation in annotations] == pytest.approx(width * height, abs=1e-3)
    sigmas = np.array([annotation["edge_sigma"] for annotation in annotations])
    assert sigmas.shape[1] == 4
    assert sigmas.min() >= 0.4


def test_written_boxes_are_within_two_sigmas_of_the_true_ones_and_exact_in_validation(written):
    cut = 0
    for annotation in load(written, "train")["annotations"]:
        box, true_box, sigma = (np.array(annotation[key]) for key in ("bbox", "true_bbox", "edge_sigma"))
        sides, true_sides = (np.concatenate([xywh[:2], xywh[:2] + xywh[2:]]) for xywh in (box, true_box))
        assert (np.abs(sides - true_sides) <= 2 * sigma + 0.003).all()  # clipping brings them closer only
        assert not np.array_equal(box, true_box)
        cut += ((true_sides == 0) | (true_sides == IMAGE_SIZE)).any()
    assert cut > 0
    assert all(annotation["bbox"] == annotation["true_bbox"] for annotation in load(written, "val")["annotations"])


def test_two_runs_are_identical_and_an_image_does_not_depend_on_the_counts(written, tmp_path):
    write_shapes(tmp_path / "again", NUM_TRAIN, NUM_VAL, SEED)
    assert files(tmp_path / "again") == files(written)
    write_shapes(tmp_path / "fewer", 2, 1, SEED)
    few, many = files(tmp_path / "fewer"), files(written)
    assert all(few[name] == many[name] for name in ("train/000000.png", "train/000001.png", "val/000000.png"))
    assert few["train/000000.png"] != few["val/000000.png"]
    fewer = load(tmp_path / "fewer", "train")["annotations"]
    assert fewer == load(written, "train")["annotations"][: len(fewer)]
    write_shapes(tmp_path / "other", 1, 1, SEED + 1)
    assert files(tmp_path / "other")["train/000000.png"] != few["train/000000.png"]


def test_the_same_set_is_kept_and_another_replaces_it(tmp_path):
    assert write_shapes(tmp_path, 3, 1, 0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert not write_shapes(tmp_path, 3, 1, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    (tmp_path / "val" / "000000.png").unlink()
    assert write_shapes(tmp_path, 3, 1, 0)  # an incomplete set is not the same set
    assert write_shapes(tmp_path, 2, 1, 0)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["000000.png", "000001.png"]
    assert len(load(tmp_path, "train")["images"]) == 2


def test_objects_have_the_size_that_is_asked_for(tmp_path, script, refusal):
    args = Namespace(out=str(tmp_path), train=9, val=1, seed=0, size=[0.5, 1.0], softness=1.0)
    script("make_shapes").main(args)
    assert load(tmp_path, "val")["info"]["extents"] == args.size
    samples = [render_sample(np.random.default_rng(seed), False, Scene((0.5, 1.0)))[1] for seed in range(40)]
    extents = np.array([shape.sides[2:] - shape.sides[:2] for sample in samples for shape in sample]) / IMAGE_SIZE
    assert extents.min() >= 0.5
    assert 0.9 < extents.max() <= 1
    assert write_shapes(tmp_path, 9, 1, 0)  # of the default size: another set
    for low, high in ((0.04, 0.5), (0.6, 0.5), (0.5, 1.1)):
        assert refusal(write_shapes, tmp_path, 9, 1, 0, Scene((low, high))).code == "size"


def test_softness_scales_blur_and_noise_of_the_same_objects(tmp_path, refusal):
    scenes = [render_sample(np.random.default_rng(5), True, Scene(softness=factor)) for factor in (1.0, 0.25)]
    assert not np.array_equal(scenes[0][0], scenes[1][0])
    for usual, sharp in zip(scenes[0][1], scenes[1][1], strict=True):
        assert (usual.kind, usual.sides.tolist()) == (sharp.kind, sharp.sides.tolist())
        np.testing.assert_allclose(sharp.sigmas, usual.sigmas / 4)
        np.testing.assert_allclose(sharp.annotated - sharp.sides, (usual.annotated - usual.sides) / 4, atol=1e-9)
    softest = [render_sample(np.random.default_rng(seed), True, Scene(softness=2.0))[1] for seed in range(40)]
    assert min((shape.annotated[2:] - shape.annotated[:2]).min() for shapes in softest for shape in shapes) > 1
    write_shapes(tmp_path, 1, 1, 0, Scene(softness=2.0))
    assert load(tmp_path, "val")["info"]["softness"] == 2.0
    for softness in (0.0, 2.1, float("nan")):
        assert refusal(write_shapes, tmp_path, 1, 1, 0, Scene(softness=softness)).code == "softness"


def test_an_interrupted_run_does_not_look_complete(tmp_path, monkeypatch):
    write_shapes(tmp_path, 2, 1, 0)

    def interrupt(rng, noisy, scene):
        if not noisy:  # in the middle: the training images are there, those for validation are not
            raise KeyboardInterrupt
        return render_sample(rng, noisy, scene)

    with monkeypatch.context() as patched:
        patched.setattr(shapes, "render_sample", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_shapes(tmp_path, 2, 2, 0)
    assert not list(tmp_path.glob("annotations/*"))
    assert write_shapes(tmp_path, 2, 1, 0)


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path, refusal):
    mine = tmp_path / "train" / "000000.png"
    mine.parent.mkdir()
    mine.write_text("mine")
    for path in (tmp_path, mine):
        message = refusal(write_shapes, path, 1, 1, 0)
        assert str(path) in message
        assert message.code == "not_empty"
    assert files(tmp_path) == {"train/000000.png": b"mine"}


def test_the_command_writes_the_set_once(script, tmp_path, capsys):
    make_shapes = script("make_shapes")
    args = Namespace(out=str(tmp_path / "new"), train=2, val=1, seed=0, size=None, softness=1.0)
    make_shapes.main(args)
    printed = capsys.readouterr().out
    assert f"python train.py configs/gfl_r18_shapes.yaml data.train.annotations={args.out}/annotations" in printed
    before = files(tmp_path)
    make_shapes.main(args)
    assert args.out in capsys.readouterr().out
    assert files(tmp_path) == before
    assert make_shapes._overrides("data/shapes/") == []
