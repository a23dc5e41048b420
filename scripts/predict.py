"""Detect objects in images, and draw the distribution of each side of their boxes."""

import argparse
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Detect objects in an image or a folder of images. Writes NAME.boxes.png with boxes, labels and "
        "scores, NAME.sides.png with the four side distributions of the most confident boxes, and predictions.json.",
        epilog="example: python scripts/predict.py runs/gfl_r18_shapes data/shapes/val -o pictures --limit 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="a run folder (its best.pt, else its last.pt) or a .pt file")
    parser.add_argument("images", help="an image, or a folder of images")
    parser.add_argument("-o", "--out", required=True, help="folder for the pictures and predictions.json")
    parser.add_argument("--score", type=float, default=0.3, help="minimum score of a detection (default 0.3)")
    parser.add_argument("--boxes", type=int, default=3, help="boxes whose sides are drawn (default 3)")
    parser.add_argument("--limit", type=int, help="stop after this many images")
    return parser.parse_args()


ARGS = parse_args() if __name__ == "__main__" else None  # before the heavy imports, so that --help answers at once

from collections import Counter
from typing import Any

import numpy as np

from gfl.checkpoint import load_detector
from gfl.common.errors import UserError, run
from gfl.common.files import output_folder, write_json
from gfl.data.image_files import IMAGE_SUFFIXES, is_image, read_image
from gfl.evaluation.draw import draw_boxes, draw_distributions, save_image
from gfl.evaluation.inference import Prediction


def main(args: argparse.Namespace) -> None:
    out = output_folder(args.out)
    paths = find_images(Path(args.images))[: args.limit]
    detector = load_detector(args.checkpoint)
    predictions, failed = {}, 0
    stems = Counter(path.stem for path in paths)
    for path in paths:
        try:
            image = read_image(path)
        except UserError as error:  # one bad file of a folder does not stop the others
            print(f"skipped: {error}", file=sys.stderr)
            failed += 1
            continue
        found = detector.predict(image, score_thresh=args.score)
        name = path.stem if stems[path.stem] == 1 else path.name
        written = draw(image, found, out / name, max_sides=args.boxes)
        predictions[str(path)] = to_json(found)
        print(f"{path}: {len(found.scores)} objects  {'  '.join(map(str, written))}")
    write_json(out / "predictions.json", predictions)
    print(f"{sum(map(len, predictions.values()))} objects in {len(predictions)} images: {out / 'predictions.json'}")
    if failed:
        raise UserError(f"{failed} of {len(paths)} images could not be read, see above; the others are written")


def find_images(path: Path) -> list[Path]:
    """The image itself, or the images in a folder by name."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no image or folder {path}")
    images = sorted(entry for entry in path.iterdir() if is_image(entry))
    if not images:
        raise UserError(f"no images in {path}; known endings: {', '.join(IMAGE_SUFFIXES)}")
    return images


def draw(image: np.ndarray, found: Prediction, stem: Path, *, max_sides: int) -> list[Path]:
    """Write `stem`.boxes.png, and `stem`.sides.png where sides are distributions; returns their paths."""
    texts = [f"{name} {score:.2f}" for name, score in zip(found.class_names, found.scores, strict=True)]
    written = [stem.with_name(f"{stem.name}.boxes.png")]
    save_image(draw_boxes(image, found.boxes_xyxy, found.labels, texts), written[0])
    if found.sides is None or found.sides.probabilities is None:
        return written
    best = slice(max_sides)
    sides = draw_distributions(
        image,
        found.boxes_xyxy[best],
        found.points[best],
        found.sides.positions[best],
        found.sides.probabilities[best],
        found.labels[best],
        texts[best],
    )
    written.append(stem.with_name(f"{stem.name}.sides.png"))
    save_image(sides, written[1])
    return written


def to_json(found: Prediction) -> list[dict[str, Any]]:
    """Label, score, box (x, y, width, height) and, of distributions, the sides' standard deviations (l, t, r, b).

    All in pixels.
    """
    boxes = np.concatenate([found.boxes_xyxy[:, :2], found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]], axis=1)
    entries = [
        {"label": name, "score": round(float(score), 4), "bbox": [round(float(value), 2) for value in box]}
        for name, score, box in zip(found.class_names, found.scores, boxes, strict=True)
    ]
    if found.sides is None:
        return entries
    sides = [[round(float(value), 2) for value in std] for std in found.sides.std]
    return [entry | {"side_std": side_std} for entry, side_std in zip(entries, sides, strict=True)]


if __name__ == "__main__":
    run(main, ARGS)
