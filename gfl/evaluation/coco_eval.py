"""From a detector and a split to COCO's metrics, computed by pycocotools or hotcoco."""

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from gfl.common.distributed import gather_to_main
from gfl.common.errors import UserError
from gfl.common.findings import Finding, finding_if_any
from gfl.common.text import printable
from gfl.config import DataConfig, EvalConfig
from gfl.data.annotation_marks import ignored_because, own_area, usable_area
from gfl.data.coco import CocoData, image_path
from gfl.data.coco_json import read_coco_json
from gfl.data.image_files import read_image
from gfl.data.loader import batches
from gfl.evaluation.draw import draw_boxes
from gfl.evaluation.inference import detect
from gfl.model.detector import DenseDetector
from gfl.structures import Batch, Detections

METRIC_NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL")

COCO_DETECTIONS = 100  # the best of an image that COCO's own AP counts

Result = dict[str, Any]  # one detection in COCO's results format


def run_detector(
    model: DenseDetector,
    loader: Iterable[Batch],
    data: CocoData,
    config: EvalConfig,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    on_batch: Callable[[], object] = lambda: None,
) -> list[Result] | None:
    """Detections of the split in COCO's results format, on the main process; None on the others. `dtype`: see `detect`.

    Raises `RuntimeError` if an image was not evaluated exactly once over all processes.
    """
    model.eval()
    results, image_ids = [], []
    for batch in batches(loader):
        detections, _ = detect(model, batch.to(device), config, dtype=dtype)
        results += _to_results(detections, batch.image_ids.tolist(), data.category_ids)
        image_ids += batch.image_ids.tolist()
        on_batch()
    gathered = gather_to_main((image_ids, results))
    if gathered is None:
        return None
    if sorted(image for ids, _ in gathered for image in ids) != sorted(data.image_ids.tolist()):
        raise RuntimeError("not every image was evaluated exactly once")
    merged = [result for _, part in gathered for result in part]
    merged.sort(key=lambda result: result["image_id"])  # stable: the same order for any number of processes
    return merged


def _to_results(detections: Detections, image_ids: Sequence[int], category_ids: Sequence[int]) -> list[Result]:
    boxes = detections.boxes_xyxy.double()
    boxes = torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], dim=-1)
    columns = boxes.tolist(), detections.scores.tolist(), detections.labels.tolist()
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(value, 3) for value in box],
            "score": round(score, 6),
        }
        for image_id, *image in zip(image_ids, *columns, strict=True)
        for box, score, label in zip(*image, strict=True)
        if label >= 0
    ]


def coco_metrics(
    data: CocoData, results: list[Result], *, max_detections: int = COCO_DETECTIONS, backend: str = "auto"
) -> dict[str, Any]:
    """COCO's twelve metrics, and under ``per_class`` AP and AP50 of each; None where there are no objects.

    The ground truth is the json's own, with crowd and degenerate boxes, as the official evaluation uses it. Boxes that
    are marked as ignored count as crowds, those of `data.ignored_classes` as crowds of every class. COCO counts the 100
    best detections of an image. A larger `max_detections`, from the config, counts in all metrics but AR1, AR10 and
    AR100; then ``AR<max_detections>`` is added, and COCO's own AP as ``AP@100``.

    `backend` is the config's `eval.backend`. Raises `UserError` if it is not installed.
    """
    coco, coco_eval = evaluation_library(backend)
    ground_truth = coco()
    ground_truth.dataset = _ground_truth(data)
    if not results:  # pycocotools cannot load an empty list
        results = [
            {"image_id": int(data.image_ids[0]), "category_id": data.category_ids[0], "bbox": [0, 0, 0, 0], "score": 0}
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
        evaluation = coco_eval(ground_truth, ground_truth.loadRes([dict(result) for result in results]), "bbox")
        evaluation.params.catIds = sorted(data.category_ids)
        evaluation.params.maxDets = sorted({1, 10, COCO_DETECTIONS, max(COCO_DETECTIONS, max_detections)})
        evaluation.evaluate()
        evaluation.accumulate()
    metrics = _summary(evaluation, COCO_DETECTIONS)
    if max_detections > COCO_DETECTIONS:
        metrics |= _summary(evaluation, max_detections) | {f"AP@{COCO_DETECTIONS}": metrics["AP"]}
    # By IoU threshold, recall and class; of all areas, with most detections.
    precision = np.asarray(evaluation.eval["precision"])[..., 0, -1]
    columns = np.argsort(np.argsort(data.category_ids)).tolist()
    metrics["per_class"] = {
        name: {"AP": _mean(precision[:, :, column]), "AP50": _mean(precision[0, :, column])}
        for name, column in zip(data.class_names, columns, strict=True)
    }
    return metrics


def check_backend(backend: str) -> None:
    """Raises `UserError` where `eval.backend` names a package that is missing: before the work, not after an epoch.

    It imports no more than that takes.
    """
    if backend == "hotcoco":
        evaluation_library(backend)


def evaluation_library(backend: str) -> tuple[type, type]:
    """`COCO` and `COCOeval` of a library: pycocotools, or hotcoco, the same metrics in a fraction of the time.

    ``auto`` is hotcoco where it can be imported. Raises `UserError` if `backend` cannot.
    """
    if backend != "pycocotools":
        try:
            from hotcoco import COCO, COCOeval

            return COCO, COCOeval
        except ImportError as error:
            if backend == "hotcoco":
                raise UserError(f"eval.backend=hotcoco: {error}; pip install hotcoco", code="missing_package") from None
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _summary(evaluation: Any, max_detections: int) -> dict[str, float | None]:
    """The twelve metrics, all but AR1 and AR10 with `max_detections` per image; as pycocotools' `summarize` for 100."""
    limits = list(evaluation.params.maxDets)
    thresholds = [round(float(threshold), 2) for threshold in evaluation.params.iouThrs]
    areas = {name[0].upper(): area for area, name in enumerate(evaluation.params.areaRngLbl) if name != "all"}
    best = limits.index(max_detections)
    precision, recall = (np.asarray(evaluation.eval[name]) for name in ("precision", "recall"))
    values = {"AP": precision[..., 0, best]}
    values |= {f"AP{round(iou * 100)}": precision[thresholds.index(iou), ..., 0, best] for iou in (0.5, 0.75)}
    values |= {f"AP{initial}": precision[..., area, best] for initial, area in areas.items()}
    values |= {f"AR{limit}": recall[..., 0, limits.index(limit)] for limit in (1, 10, max_detections)}
    values |= {f"AR{initial}": recall[..., area, best] for initial, area in areas.items()}
    return {name: _mean(part) for name, part in values.items()}


def _ground_truth(data: CocoData) -> dict[str, Any]:
    """The json as pycocotools takes it, with the fields it requires.

    Annotations are numbered from 1: pycocotools treats a match with annotation id 0 as no match.
    """
    tree = read_coco_json(data.annotations, outlines=False)
    annotations: list[dict[str, Any]] = []
    for entry in tree["annotations"]:
        box, area = _finite_box(entry["bbox"]), usable_area(entry)
        reason = ignored_because(entry, data.ignored_categories)
        for category in data.category_ids if reason == "class" else [entry["category_id"]]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": entry["image_id"],
                    "category_id": category,
                    "bbox": box,
                    "area": own_area(box) if area is None else area,
                    "iscrowd": int(bool(reason)),
                }
            )
    images = [{"id": entry["id"]} for entry in tree["images"]]
    categories = [{"id": entry["id"], "name": entry["name"]} for entry in tree["categories"]]
    return {"images": images, "categories": categories, "annotations": annotations, "info": {}}


def _finite_box(bbox: list[float]) -> list[float]:
    """NaN and infinity become a box that nothing matches; pycocotools would let anything match them."""
    return bbox if all(map(math.isfinite, bbox)) else [0, 0, 0, 0]


def _mean(precision: np.ndarray) -> float | None:
    precision = precision[precision > -1]
    return float(precision.mean()) if precision.size else None


def format_metrics(metrics: dict[str, Any]) -> str:
    """The metrics of all classes in two lines and one line per class, as text."""
    text = {name: "-" if value is None else f"{value:.3f}" for name, value in metrics.items() if name != "per_class"}
    lines = []
    for row in ([name for name in text if name.startswith(kind)] for kind in ("AP", "AR")):
        lines += ["  ".join(f"{name:>6}" for name in row), "  ".join(f"{text[name]:>6}" for name in row)]
    per_class = {printable(name): values for name, values in metrics["per_class"].items()}
    longest = max(5, *(len(name) for name in per_class))
    lines += ["", f"{'class':<{longest}}  {'AP':>6}  {'AP50':>6}"]
    for name, values_of_class in per_class.items():
        values = ("-" if value is None else f"{value:.3f}" for value in values_of_class.values())
        lines.append(f"{name:<{longest}}  " + "  ".join(f"{value:>6}" for value in values))
    return "\n".join(lines)


def crowded_findings(data: CocoData, config: EvalConfig, split: str = "") -> list[Finding]:
    """Images with more boxes than `eval.max_detections`: even perfect detections of them do not score 1."""
    counts = np.diff(data.offsets)
    crowded = np.flatnonzero(counts > config.max_detections)
    what = f"{split} images with more than eval.max_detections={config.max_detections} boxes".lstrip()
    advice = f"eval.max_detections={int(counts.max())} detects and counts all of them, with COCO's metric beside it"
    return finding_if_any("warning", what, advice, [str(data.file_names[index]) for index in crowded])


def draw_samples(
    data: CocoData,
    results: list[Result],
    count: int,
    config: DataConfig,
    *,
    min_score: float = 0.3,
) -> list[np.ndarray]:
    """The split's first `count` images, uint8 (H, W, 3), with confident detections and the true boxes."""
    images_drawn = []
    label_of = {category: label for label, category in enumerate(data.category_ids)}
    for index in range(min(count, len(data))):
        image_id = int(data.image_ids[index])
        found = [r for r in results if r["image_id"] == image_id and r["score"] >= min_score]
        corners = [(x, y, x + width, y + height) for x, y, width, height in (r["bbox"] for r in found)]
        labels = [label_of[r["category_id"]] for r in found]
        texts = [f"{data.class_names[label]} {r['score']:.2f}" for label, r in zip(labels, found, strict=True)]
        path, size = image_path(data, index), tuple(data.sizes[index].tolist())
        image = read_image(path, size, bit_depth=config.bit_depth, max_pixels=config.max_pixels)
        boxes_xyxy = np.array(corners, np.float32).reshape(-1, 4)
        images_drawn.append(
            draw_boxes(image, boxes_xyxy, np.array(labels, np.int64), texts, target_boxes=data.boxes_of(index)[0])
        )
    return images_drawn
