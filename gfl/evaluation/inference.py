"""From a batch or a single image to detections, each with the distributions of its four sides.

numpy arrays of one image: n detections, N bins per side, sides in the order left, top, right, bottom.
Pixels are those of the image file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from gfl.common.file_kinds import is_url
from gfl.common.text import one_line
from gfl.config import Config, DataConfig, EvalConfig
from gfl.data.dataset import Sample, as_in_eval, collate
from gfl.data.image_errors import BadImage, check_pixel_count, url_error
from gfl.data.image_files import read_image
from gfl.data.orientation import pil_orientation, turn_upright
from gfl.evaluation.views import Origins, join_outputs
from gfl.method.box_representation import BoxRepresentation, GaussianBox, GeneralBox
from gfl.method.boxes import clip_boxes
from gfl.method.points import points_in_images
from gfl.method.postprocess import find_candidates, suppress
from gfl.model.detector import DenseDetector, normalize_images
from gfl.model.precision import eval_dtype
from gfl.structures import Batch, Detections, HeadOutput

QUANTILES = (0.05, 0.5, 0.95)
OUTWARDS = np.array([-1.0, -1.0, 1.0, 1.0])  # direction of left, top, right, bottom along x or y


class Sides(NamedTuple):
    """Distributions of the sides of n boxes: x of left and right, y of top and bottom, in pixels."""

    expectation: np.ndarray  # (n, 4) their means, before boxes are clipped to the image
    std: np.ndarray  # (n, 4) their standard deviations
    quantiles: np.ndarray  # (n, 4, 3) their 5, 50 and 95 % quantiles
    positions: np.ndarray | None  # (n, 4, N) of the bins; None for Gaussian sides
    probabilities: np.ndarray | None  # (n, 4, N) of the bins; None for Gaussian sides


class Prediction(NamedTuple):
    """The detections of one image, best first."""

    boxes_xyxy: np.ndarray  # (n, 4) pixels, within the image
    labels: np.ndarray  # (n,) int64 in [0, C)
    class_names: tuple[str, ...]  # n names
    scores: np.ndarray  # (n,)
    sides: Sides | None  # None where a side is a number only (`model.head.box` dirac or anchor_delta)
    points: np.ndarray  # (n, 2) the predicting points

    def __repr__(self) -> str:
        """Names and scores of the first few: the arrays would fill pages."""
        first = [f"{name} {score:.2f}" for name, score in zip(self.class_names[:5], self.scores[:5], strict=True)]
        return f"Prediction({len(self.scores)} objects: {', '.join(first)}{', ...' if len(self.scores) > 5 else ''})"


class RawDetections(NamedTuple):
    """The detections of one image with the outputs they come from, best first."""

    boxes_xyxy: np.ndarray  # (n, 4) float64 pixels, within the image
    scores: np.ndarray  # (n,)
    labels: np.ndarray  # (n,)
    points: np.ndarray  # (n, 2) the predicting points, pixels
    strides: np.ndarray  # (n,) of their levels, in pixels of the network's input
    scales: np.ndarray  # (n, 2) pixels of the file per pixel of the input, x and y
    distances: np.ndarray  # (n, 4) expectations, in strides
    deviations: np.ndarray | None  # (n, 4) in strides, of Gaussian sides
    probabilities: np.ndarray | None  # (n, 4, N) of distributions
    delta: float  # interval between neighbouring bins, in strides; 1 without distributions

    @property
    def stride_pixels(self) -> np.ndarray:
        """(n, 4) pixels of the file per stride, along each side's axis."""
        return self.strides[:, None] * np.tile(self.scales, 2)


@torch.inference_mode()
def detect(
    model: DenseDetector, batch: Batch, config: EvalConfig, *, dtype: torch.dtype | None = None
) -> tuple[Detections, HeadOutput]:
    """Detections of a batch on the model's device, in pixels of the original images, and the output they come from.

    Points in the padding that an image has only for the sake of the others detect nothing. The network is computed
    under autocast to `dtype`, or in float32; scores, boxes and NMS are in float32 in any case. With test-time
    augmentation the candidates of all views go through one NMS, and the output is that of all views.
    """
    outputs, inside, sizes = [], [], batch.image_sizes
    for view in (batch, *batch.views):
        images = normalize_images(view.images, view.image_sizes)
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            outputs.append(model(images))
        inside.append(points_in_images(outputs[-1].grid, view.image_sizes))
    output = join_outputs(outputs)
    if not (output.cls_logits.sum(dtype=torch.float32) + output.reg_pred.sum(dtype=torch.float32)).isfinite():
        _warn_not_finite(dtype)
    found = find_candidates(
        (model.quality.scores(of_image)[0] for of_image in output.images()),
        output.grid.level_sizes,
        inside=torch.cat(inside, dim=1),
        rank_factor=model.quality.rank_factor(output),
        score_thresh=config.score_thresh,
        pre_nms_topk=config.pre_nms_topk,
    )
    boxes = model.decode_at(output, found.image, found.point)
    if batch.views:
        origins = Origins.of(batch, output.grid, found.image, found.point)
        boxes = origins.to_view(boxes, sizes[found.image])
    boxes = clip_boxes(boxes[:, None], sizes[found.image])[:, 0]
    detections = suppress(boxes, found, len(sizes), nms_iou=config.nms_iou, max_detections=config.max_detections)
    scale = (batch.orig_sizes / batch.image_sizes).flip(-1).repeat(1, 2)  # x, y, x, y
    return detections._replace(boxes_xyxy=detections.boxes_xyxy * scale[:, None].to(detections.boxes_xyxy)), output


@cache
def _warn_not_finite(dtype: torch.dtype | None) -> None:
    """Once: such values are no detections, so that the metrics alone would not show them."""
    advice = "" if dtype is None else "; eval.amp=none computes in float32"
    tqdm.write(f"warning  the network's outputs are not finite everywhere: nothing is detected there{advice}")


def detect_with_sides(
    model: DenseDetector, batch: Batch, config: EvalConfig, *, dtype: torch.dtype | None = None
) -> list[RawDetections]:
    """`detect`, then per image the outputs behind each detection's sides. `batch` is on the model's device."""
    detections, output = detect(model, batch, config, dtype=dtype)
    return [_raw_detections(model.box_repr, batch, detections, output, row) for row in range(len(batch.images))]


def _raw_detections(
    box_repr: BoxRepresentation, batch: Batch, detections: Detections, output: HeadOutput, row: int
) -> RawDetections:
    """Those of the image `row` of the batch, as they are where no view is mirrored."""
    boxes, scores, labels, index = (column[row, detections.labels[row] >= 0] for column in detections)
    origins = Origins.of(batch, output.grid, torch.full_like(index, row), index)
    scales, reg_pred = (batch.orig_sizes[row] / origins.sizes).flip(1), output.reg_pred[row, index]

    def by_side(values: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        return _numpy(origins.by_side(values(reg_pred)))

    return RawDetections(
        boxes_xyxy=_numpy(boxes).astype(np.float64),
        scores=_numpy(scores),
        labels=_numpy(labels),
        points=_numpy(origins.points(output.grid.points[index]) * scales),
        strides=_numpy(output.grid.strides[index]),
        scales=_numpy(scales),
        distances=by_side(box_repr.distances),
        deviations=by_side(box_repr.deviations) if isinstance(box_repr, GaussianBox) else None,
        probabilities=by_side(box_repr.probabilities) if isinstance(box_repr, GeneralBox) else None,
        delta=box_repr.delta if isinstance(box_repr, GeneralBox) else 1.0,
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def locate_sides(found: RawDetections) -> Sides | None:
    """The distributions of the sides in image coordinates; None where a side is a number only."""
    if found.deviations is not None:
        mean = np.tile(found.points, 2) + OUTWARDS * found.distances * found.stride_pixels
        std = found.deviations * found.stride_pixels
        quantiles = np.stack([mean + NormalDist().inv_cdf(level) * std for level in QUANTILES], axis=-1)
        return Sides(mean, std, quantiles, positions=None, probabilities=None)
    if found.probabilities is None:
        return None
    positions = bin_positions(found.points, found.stride_pixels, found.probabilities.shape[-1], delta=found.delta)
    mean, std = mean_and_std(positions, found.probabilities)
    return Sides(mean, std, quantiles_of_bins(positions, found.probabilities), positions, found.probabilities)


def bin_positions(points: np.ndarray, stride_pixels: np.ndarray, num_bins: int, *, delta: float = 1.0) -> np.ndarray:
    """Positions of bins in the image: (n, 4, `num_bins`) pixels, x for left and right, y for top and bottom.

    Bin i lies ``i * delta`` strides outwards from the point; `points` (n, 2) and `stride_pixels` (n, 4) in pixels.
    """
    start, step = np.tile(points, 2).astype(float), OUTWARDS * delta * stride_pixels
    return start[..., None] + step[..., None] * np.arange(num_bins)


def mean_and_std(positions: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expectation and standard deviation over the last axis, in the unit of positions: (..., N) x 2 -> (...) x 2."""
    mean = (positions * probabilities).sum(-1)
    return mean, np.sqrt(((positions - mean[..., None]) ** 2 * probabilities).sum(-1))


def quantiles_of_bins(positions: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """`QUANTILES` of distributions over bins: (..., N) x 2 -> (..., 3), in the unit of `positions`.

    The mass of each bin is spread evenly over the interval that is closer to it than to its neighbours. `positions`
    rise or fall along the last axis in equal steps.
    """
    falling = (positions[..., 1] < positions[..., 0])[..., None]
    positions = np.where(falling, positions[..., ::-1], positions)
    probabilities = np.where(falling, probabilities[..., ::-1], probabilities)
    width = positions[..., 1:2] - positions[..., :1]
    cumulative = probabilities.cumsum(-1, dtype=np.float64)  # a small bin's share magnifies what is lost in rounding
    quantiles = []
    for level in QUANTILES:
        wanted = level * cumulative[..., -1:]  # float32 probabilities do not quite sum to 1
        index = np.minimum((cumulative < wanted).sum(-1, keepdims=True), positions.shape[-1] - 1)
        mass = np.take_along_axis(probabilities, index, -1)
        below = np.take_along_axis(cumulative, index, -1) - mass
        share = np.clip((wanted - below) / np.maximum(mass, 1e-12), 0, 1)
        quantiles.append(np.take_along_axis(positions, index, -1) + (share - 0.5) * width)
    return np.concatenate(quantiles, axis=-1).astype(positions.dtype)


def default_device() -> torch.device:
    """A GPU if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Detector:
    """A trained detector with its config and class names, as `gfl.load_detector` returns it."""

    model: DenseDetector = field(repr=False)
    config: Config = field(repr=False)
    class_names: tuple[str, ...]
    checkpoint: Path

    def predict(self, image: str | Path | Image.Image | np.ndarray, *, score_thresh: float | None = None) -> Prediction:
        """The objects in one image.

        Args:
            image: a path, a PIL image, or an array (H, W, 3) of uint8 RGB. Paths and PIL images are turned upright by
                the orientation in their metadata; `data.bit_depth` of the config holds for paths, `data.max_pixels` for
                both.
            score_thresh: minimum score of a detection; by default the config's `eval.score_thresh`.

        Raises `UserError` for a file that is missing, damaged or too large, `ValueError` for an array or PIL image of
        another kind, and `TypeError` for anything else.
        """
        pixels = _as_rgb(image, self.config.data)
        settings = self.config.eval
        if score_thresh is not None:
            if not 0 <= score_thresh <= 1:
                raise ValueError(f"score_thresh must be in [0, 1], not {score_thresh}")
            settings = replace(settings, score_thresh=score_thresh)
        device = next(self.model.parameters()).device
        dtype = eval_dtype(self.config, device)
        (found,) = detect_with_sides(self.model, self._batch(pixels).to(device), settings, dtype=dtype)
        names = tuple(self.class_names[label] for label in found.labels)
        sides = locate_sides(found)
        return Prediction(found.boxes_xyxy, found.labels, names, found.scores, sides, found.points)

    def _batch(self, pixels: np.ndarray) -> Batch:
        """(H, W, 3) resized as in evaluation."""
        no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        sample = Sample(pixels, no_boxes, no_labels, image_id=0, orig_size=pixels.shape[:2])
        return collate([as_in_eval(sample, self.config.data, self.config.eval)])


def _as_rgb(image: str | Path | Image.Image | np.ndarray, config: DataConfig) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    if isinstance(image, (str, Path)):
        if is_url(image):
            raise url_error(image)
        return read_image(Path(image), bit_depth=config.bit_depth, max_pixels=config.max_pixels)
    if isinstance(image, Image.Image):
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
            raise ValueError(f"a PIL image of mode {image.mode} has no 8-bit colours; convert it to RGB first")
        name = getattr(image, "filename", "") or "(PIL)"
        check_pixel_count(name, *image.size, config.max_pixels)  # its pixels are still in the file
        try:
            pixels = np.asarray(image.convert("RGB"))  # loads it first, by which Pillow turns some formats itself
            return turn_upright(pixels, pil_orientation(image))
        except OSError as error:  # PIL reads pixels only now
            raise BadImage(f"the image is damaged: {one_line(error)}", code="damaged_image") from None
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a path, a PIL image or an array, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an array must be uint8 RGB (H, W, 3), not {image.dtype} {image.shape}")
    return image.copy()  # of positive strides
