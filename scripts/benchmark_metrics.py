"""Time COCO's metrics of a made set with pycocotools and hotcoco, and compare all of their values."""

import argparse

from gfl.common.arguments import whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="CPU time of COCO's metrics with pycocotools and with hotcoco on a made set, from detections in "
        "COCO's results format to the metrics, and the largest difference between their values.",
        epilog="example: python scripts/benchmark_metrics.py --images 5000 --detections 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=whole_number(1), default=500, help="images (default 500)")
    parser.add_argument("--detections", type=whole_number(1), default=100, help="of each image (default 100)")
    parser.add_argument("--boxes", type=whole_number(1), default=7, help="true boxes of each image (default 7)")
    parser.add_argument("--classes", type=whole_number(1), default=80, help="number of classes (default 80)")
    parser.add_argument("--only", choices=["pycocotools", "hotcoco"], help="time one library alone")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce("loading libraries")

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gfl.common.errors import run
from gfl.common.progress import print_line
from gfl.data.coco import load_coco
from gfl.evaluation.coco_eval import Result, coco_metrics

SIDE = 640  # of the images, pixels


def main(args: argparse.Namespace) -> None:
    tree, results = make_set(args)
    with tempfile.TemporaryDirectory() as folder:
        annotations = Path(folder) / "instances.json"
        annotations.write_text(json.dumps(tree))
        cv2.imwrite(f"{folder}/image.png", np.zeros((SIDE, SIDE, 3), np.uint8))
        for entry in tree["images"]:
            (Path(folder) / entry["file_name"]).hardlink_to(f"{folder}/image.png")
        data = load_coco(str(annotations), folder)
        print_line(f"{args.images} images, {len(results)} detections, {len(tree['annotations'])} true boxes")
        found = {}
        for backend in [args.only] if args.only else ["hotcoco", "pycocotools"]:
            start = time.process_time()
            found[backend] = flatten(coco_metrics(data, results, backend=backend))
            print_line(f"{backend}: {time.process_time() - start:.2f} s of CPU time, AP {found[backend]['AP']:.4f}")
    if len(found) == 2:
        ours, theirs = found.values()
        differences = [abs((ours[name] or 0) - (theirs[name] or 0)) for name in ours]
        same_gaps = all((ours[name] is None) == (theirs[name] is None) for name in ours)
        print_line(f"largest difference of {len(ours)} values: {max(differences):.1e}; undefined alike: {same_gaps}")


def make_set(args: argparse.Namespace) -> tuple[dict[str, Any], list[Result]]:
    """COCO json with 2 % crowds, and detections around its boxes, of which a third has another class."""
    rng = np.random.default_rng(0)
    corner, side = rng.random((2, args.images, args.boxes, 2))
    boxes = np.concatenate([corner * SIDE * 0.7, 4 + side**2 * SIDE * 0.29], axis=-1)
    classes = rng.integers(args.classes, size=boxes.shape[:2])
    source = rng.integers(args.boxes, size=(args.images, args.detections))
    row = np.arange(args.images)[:, None]
    shift = rng.normal(0, 0.15, (*source.shape, 4)) * np.tile(boxes[row, source, 2:], 2)
    found = np.maximum(boxes[row, source] + shift, 0.5).round(3)
    labels = np.where(
        rng.random(source.shape) < 0.67, classes[row, source], rng.integers(args.classes, size=source.shape)
    )
    scores = rng.random(source.shape).round(3)  # with ties
    crowd = (rng.random(classes.shape) < 0.02).astype(int).tolist()
    ids = rng.permutation(args.images) + 1
    images = [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in ids.tolist()]
    annotations = [
        {"image_id": image["id"], "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": is_crowd}
        for image, *columns in zip(images, classes.tolist(), boxes.tolist(), crowd, strict=True)
        for label, box, is_crowd in zip(*columns, strict=True)
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    categories = [{"id": number + 1, "name": f"class {number}"} for number in range(args.classes)]
    results = [
        {"image_id": image["id"], "category_id": label + 1, "bbox": box, "score": score}
        for image, *columns in zip(images, labels.tolist(), found.tolist(), scores.tolist(), strict=True)
        for label, box, score in zip(*columns, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def flatten(metrics: dict[str, Any]) -> dict[str, float | None]:
    """The metrics of all classes and of each in one dict."""
    values = {name: value for name, value in metrics.items() if name != "per_class"}
    return values | {f"{name} {key}": v for name, each in metrics["per_class"].items() for key, v in each.items()}


if __name__ == "__main__":
    run(main, ARGS)
