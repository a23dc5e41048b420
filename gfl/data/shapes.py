"""The embedded data set: soft shapes, where every box side has a known blur and thus a known ideal distribution.

Coordinates are continuous pixels: pixel (row i, column j) covers [j, j + 1] x [i, i + 1] and is sampled at its centre.
Values of the four sides of an object are arrays (4,) in the order left, top, right, bottom.
"""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from gfl.common.errors import UserError
from gfl.common.files import write_json

VERSION = 3  # raise it when the images or annotations of a seed change
MARKER = "SOFT_SHAPES.txt"
SPLITS = ("train", "val")
KINDS = ("rectangle", "ellipse", "ring", "cross")

IMAGE_SIZE, MAX_OBJECTS = 160, 6
EXTENTS, MAX_ASPECT = (0.175, 0.6875), 2.5  # extents are shares of the image side: 28 to 110 px
MIN_SHARE = 0.05  # of an extent: 8 px, so that the limit of a blur lies above its minimum
MIN_SIGMA, MAX_SIGMA, MAX_SIGMA_SHARE = 0.4, 12.0, 0.12
MAX_SOFTNESS = 2.0  # twice the sigmas, at two of them, still leave an annotated box a width
MAX_NOISE = 2.0  # annotators disagree by at most this many sigmas
LEAVING_SHARE, MAX_OVERHANG = 0.25, 0.25  # 25 % outside along both axes leave 56 % of the box in the image
MAX_HIDDEN = 0.35  # also keeps the IoU of two boxes below 0.35
MIN_CONTRAST, COLOUR_SPREAD = 65.0, 60.0  # distance of two colours in RGB; spread per channel around the background's
HOLE, ARM = 0.4, 0.4  # hole of a ring, width of the arms of a cross: shares of the extent

# Phi, the Gaussian CDF, as a table: numpy has no erf. Linear interpolation is right to 1e-6.
_PHI_AT = np.linspace(-5.0, 5.0, 2001)
_PHI = np.array([0.5 * (1.0 + math.erf(z / math.sqrt(2.0))) for z in _PHI_AT])


class Scene(NamedTuple):
    """What the objects of a set are like."""

    extents: tuple[float, float] = EXTENTS  # of widths and heights, as shares of the image side
    softness: float = 1.0  # factor on every blur, and so on how far annotators disagree


class SoftShape(NamedTuple):
    """One object: true sides, their blurs, and the annotated sides; all (4,) px, not clipped to the image."""

    kind: str  # one of KINDS
    sides: np.ndarray
    sigmas: np.ndarray
    annotated: np.ndarray


DEFAULT_SCENE = Scene()


def render_sample(
    rng: np.random.Generator, noisy: bool, scene: Scene = DEFAULT_SCENE
) -> tuple[np.ndarray, list[SoftShape]]:
    """Draw one sample: image (160, 160, 3) uint8 RGB and its 1 to 6 objects, later ones over earlier ones.

    With `noisy` (training) an annotated side is normally distributed around the true side with that side's sigma,
    truncated at two sigmas; without (validation) it is the true side. Scenes that differ in their softness have the
    same objects in the same places.
    """
    canvas = _background(rng)
    objects = []
    for sides in _place(rng, scene.extents):
        kind = KINDS[rng.integers(len(KINDS))]
        limits = np.minimum(MAX_SIGMA, MAX_SIGMA_SHARE * np.tile(sides[2:] - sides[:2], 2))
        sigmas = scene.softness * np.exp(rng.uniform(np.log(MIN_SIGMA), np.log(limits)))
        alpha = alpha_mask(kind, sides, sigmas).astype(np.float32)[..., None]
        canvas += alpha * (_paint(rng, canvas, sides) - canvas)
        # The truncated normal: uniform probabilities between the two limits, through the inverse CDF.
        errors = np.interp(rng.uniform(_phi(-MAX_NOISE), _phi(MAX_NOISE), 4), _PHI, _PHI_AT)
        objects.append(SoftShape(kind, sides, sigmas, sides + noisy * sigmas * errors))
    # Camera noise comes last: it is equal on objects and background, so it does not reveal a soft edge.
    canvas += rng.uniform(2.0, 9.0) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), objects


def alpha_mask(kind: str, sides: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Opacity (160, 160) in [0, 1] of an object of `kind` with true `sides` and blurs `sigmas`, both (4,) px.

    Along the normal through the point where the outline touches a side, the opacity is the Gaussian CDF with that
    side's sigma; it is 0.5 on the side itself.
    """
    if kind == "rectangle":
        return _soft_rectangle(sides, sigmas)
    if kind == "ellipse":
        return _soft_ellipse(sides, sigmas)
    centre = np.tile((sides[:2] + sides[2:]) / 2, 2)
    # Inner outlines have a third of the blur, so that an object is opaque between a side and the outline behind it.
    if kind == "ring":
        hole = centre + HOLE * (sides - centre)
        return _soft_ellipse(sides, sigmas) * (1.0 - _soft_ellipse(hole, sigmas / 3))
    if kind == "cross":
        level, arms = np.array([True, False, True, False]), centre + ARM * (sides - centre)
        across = _soft_rectangle(np.where(level, sides, arms), np.where(level, sigmas, sigmas / 3))
        down = _soft_rectangle(np.where(level, arms, sides), np.where(level, sigmas / 3, sigmas))
        return np.maximum(across, down)
    raise ValueError(f"unknown kind {kind!r}, known are {', '.join(KINDS)}")


def _phi(z: np.ndarray | float) -> np.ndarray | float:
    return np.interp(z, _PHI_AT, _PHI)


def _soft_rectangle(sides: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    centres = np.arange(IMAGE_SIZE) + 0.5
    across = _phi((centres - sides[0]) / sigmas[0]) * _phi((sides[2] - centres) / sigmas[2])
    down = _phi((centres - sides[1]) / sigmas[1]) * _phi((sides[3] - centres) / sigmas[3])
    return down[:, None] * across


def _soft_ellipse(sides: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Phi(distance / sigma) with the distance to first order, which is exact on the two axes, at the contact points.

    Sigma follows the normal (nx, ny): nx^2 of the left or right one plus ny^2 of the top or bottom one. A side has
    no weight where the opposite one takes over, so that sigma is continuous.
    """
    centres = np.arange(IMAGE_SIZE) + 0.5
    a, b = (sides[2:] - sides[:2]) / 2
    u, v = (centres - sides[0]) / a - 1.0, (centres[:, None] - sides[1]) / b - 1.0
    radius = np.maximum(np.hypot(u, v), 1e-6)
    slope_x, slope_y = (u / a) ** 2, (v / b) ** 2
    slope = slope_x + slope_y + 1e-12  # |gradient of radius|^2 * radius^2
    distance = (1.0 - radius) * radius / np.sqrt(slope)
    sigma_x, sigma_y = np.where(u < 0, sigmas[0], sigmas[2]), np.where(v < 0, sigmas[1], sigmas[3])
    return _phi(distance * slope / (slope_x * sigma_x + slope_y * sigma_y + 1e-12))


def _place(rng: np.random.Generator, extents: tuple[float, float]) -> list[np.ndarray]:
    """Boxes (4,) in drawing order; fewer than were drawn at random if the image is full."""
    placed: list[np.ndarray] = []
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        proposals = (_propose(rng, extents) for _ in range(30))
        sides = next((sides for sides in proposals if _fits(sides, placed)), None)
        if sides is not None:
            placed.append(sides)
    return placed


def _propose(rng: np.random.Generator, extents: tuple[float, float]) -> np.ndarray:
    low, high = (math.log(share * IMAGE_SIZE) for share in extents)
    while True:
        extent = np.exp(rng.uniform(low, high, 2))
        if extent.max() <= MAX_ASPECT * extent.min():
            break
    overhang = MAX_OVERHANG * extent * (rng.random() < LEAVING_SHARE)
    corner = rng.uniform(-overhang, IMAGE_SIZE - extent + overhang)
    return np.concatenate([corner, corner + extent])


def _fits(sides: np.ndarray, placed: list[np.ndarray]) -> bool:
    """Whether `sides` may be drawn over `placed` boxes: their contact points and most of their areas stay visible."""
    hidden = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    hidden[_pixels(sides)] = True
    for earlier in reversed(placed):
        # Every kind touches its box in the middle of each side; within 3 px of it a side could not be seen.
        (left, top, right, bottom), (x, y) = earlier, (earlier[:2] + earlier[2:]) / 2
        contacts = np.array([[left, y], [x, top], [right, y], [x, bottom]])
        covered = ((contacts > sides[:2] - 3.0) & (contacts < sides[2:] + 3.0)).all(axis=1)
        if covered.any() or hidden[_pixels(earlier)].mean() > MAX_HIDDEN:
            return False
        hidden[_pixels(earlier)] = True  # everything drawn later hides an object, not only the newest
    return True


def _pixels(sides: np.ndarray) -> tuple[slice, slice]:
    left, top, right, bottom = np.rint(sides.clip(0.0, IMAGE_SIZE)).astype(int)
    return slice(top, bottom), slice(left, right)


def _texture(rng: np.random.Generator, cells: int, strength: float) -> np.ndarray:
    """Smooth random colours (160, 160, 3) float32 around zero, `cells` blobs along the image."""
    coarse = strength * rng.standard_normal((cells, cells, 3), dtype=np.float32)
    return cv2.resize(coarse, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A colour, a gradient between the corners and texture at three scales: (160, 160, 3) float32 in [0, 255]."""
    canvas = _texture(rng, 2, rng.uniform(5.0, 30.0)) + rng.uniform(50.0, 205.0, 3).astype(np.float32)
    for cells in (5, 14, 40):
        canvas += _texture(rng, cells, rng.uniform(2.0, 14.0))
    return canvas.clip(0.0, 255.0)


def _paint(rng: np.random.Generator, canvas: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """The textured colour of an object, (160, 160, 3), with a low contrast to what is behind its whole outline.

    Low, since with a high contrast every side would be found to the pixel and there would be nothing to learn.
    """
    left, top, right, bottom = sides.clip(0.0, IMAGE_SIZE - 1).astype(int)
    rows, columns = slice(top, bottom + 1, 4), slice(left, right + 1, 4)
    outline = [canvas[rows, left], canvas[rows, right], canvas[top, columns], canvas[bottom, columns]]
    outline = np.concatenate(outline)
    colours = outline.mean(axis=0) + COLOUR_SPREAD * rng.standard_normal((64, 1, 3), dtype=np.float32)
    contrast = np.quantile(np.linalg.norm(colours.clip(0.0, 255.0) - outline, axis=-1), 0.1, axis=1)
    chosen = np.argmax(contrast.clip(max=MIN_CONTRAST))  # the first with enough contrast, else the best
    texture = _texture(rng, 7, rng.uniform(2.0, 9.0)) + _texture(rng, 30, rng.uniform(2.0, 6.0))
    return texture + colours[chosen]


def write_shapes(out: str | Path, num_train: int, num_val: int, seed: int, scene: Scene = DEFAULT_SCENE) -> bool:
    """Write the COCO-format set: OUT/{train,val}/*.png and OUT/annotations/instances_{train,val}.json.

    Image i of a split depends on (seed, split, i) and `scene` only. Returns False, without
    writing, if `out` has this set already; another soft shapes set is replaced. Annotations are written last and
    atomically: an interrupted run never looks complete. Raises `UserError` if `out` contains anything else or for a
    scene out of range, `OSError` if it cannot be written.
    """
    out, (low, high) = Path(out), scene.extents
    if not MIN_SHARE <= low <= high <= 1:
        raise UserError(f"size {low:g} to {high:g}: give two rising shares from {MIN_SHARE} to 1", code="size")
    if not 0 < scene.softness <= MAX_SOFTNESS:
        raise UserError(f"softness {scene.softness:g}: give a factor above 0, at most {MAX_SOFTNESS}", code="softness")
    info = {"description": "soft shapes", "version": VERSION, "seed": seed, "num_train": num_train, "num_val": num_val}
    changed = {name: value for name, value in scene._asdict().items() if value != getattr(DEFAULT_SCENE, name)}
    # Not the others: sets of earlier versions stay as they are.
    info |= {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
    if all(_is_written(out, split, info) for split in SPLITS):
        return False
    _clear(out)
    counts = zip(SPLITS, (num_train, num_val), strict=True)
    written = [_write_split(out, split, count, seed, scene) for split, count in counts]
    for split, content in zip(SPLITS, written, strict=True):
        write_json(out / "annotations" / f"instances_{split}.json", {"info": info} | content)
    return True


def _is_written(out: Path, split: str, info: dict) -> bool:
    try:
        content = json.loads((out / "annotations" / f"instances_{split}.json").read_text())
        names = {image["file_name"] for image in content["images"]}
        return content["info"] == info and names <= set(os.listdir(out / split))
    except (OSError, ValueError, KeyError, TypeError):  # absent, or not a COCO json
        return False


def _clear(out: Path) -> None:
    """Create the folders and remove an earlier set, annotations first; files with other names are kept."""
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} contains other files than soft shapes (no {MARKER}); choose another folder", code="not_empty"
        )
    for folder in ("annotations", *SPLITS):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("Soft shapes, written and replaced by scripts/make_shapes.py of this project.\n")
    for split in SPLITS:
        for path in [*out.glob(f"annotations/instances_{split}.json"), *out.glob(f"{split}/{'[0-9]' * 6}.png")]:
            path.unlink()


def _write_split(out: Path, split: str, count: int, seed: int, scene: Scene) -> dict:
    """Render the images of a split; returns the lists of its COCO json."""
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        image, objects = render_sample(rng, split == "train", scene)
        images.append({"id": index + 1, "file_name": f"{index:06d}.png", "width": IMAGE_SIZE, "height": IMAGE_SIZE})
        _, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        (out / split / images[-1]["file_name"]).write_bytes(png)  # cv2.imwrite crashes on paths that are not UTF-8
        for shape in objects:
            bbox, sigmas = _coco_box(shape.annotated), [round(sigma, 3) for sigma in shape.sigmas.tolist()]
            ids = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": KINDS.index(shape.kind) + 1}
            annotated = {"bbox": bbox, "area": round(bbox[2] * bbox[3], 3), "iscrowd": 0}
            exact = {"true_bbox": _coco_box(shape.sides), "edge_sigma": sigmas}
            annotations.append(ids | annotated | exact)
    categories = [{"id": number, "name": kind} for number, kind in enumerate(KINDS, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _coco_box(sides: np.ndarray) -> list[float]:
    """Sides (4,) -> x, y, width, height in the image; rounded before subtracting, so that x + width is right too."""
    left, top, right, bottom = (round(side, 3) for side in sides.clip(0.0, IMAGE_SIZE).tolist())
    return [left, top, round(right - left, 3), round(bottom - top, 3)]
