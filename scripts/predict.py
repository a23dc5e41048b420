"""Detect objects in pictures, and draw what the detector believes about each side of its boxes."""

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
    parser.add_argument(
        "--score", type=float, default=0.3, help="least score of a detection that is kept (default 0.3)"
    )
    parser.add_argument("--boxes", type=int, default=3, help="boxes whose sides are drawn (default 3)")
    parser.add_argument("--limit", type=int, help="stop after this many images")
    return parser.parse_args()


ARGS = parse_args() if __name__ == "__main__" else None  # before the heavy imports, so that --help answers at once
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository, also when called from elsewhere

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gfl.checkpoint import load_detector
from gfl.common.errors import UserError, run
from gfl.common.files import write_json
from gfl.config import Config
from gfl.data.loader import Sample, collate
from gfl.data.transforms import keep_ratio_size, read_image, resize
from gfl.evaluation.coco_eval import detect
from gfl.evaluation.draw import bin_positions, draw_boxes, draw_distributions, mean_and_std, save_picture
from gfl.method.box_representation import GeneralBox
from gfl.model.detector import Detector

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def main(args: argparse.Namespace) -> None:
    if Path(args.out).is_file():
        raise UserError(f"--out {args.out} is a file; choose a folder")
    paths = find_images(Path(args.images))[: args.limit]
    model, config, class_names, _ = load_detector(Path(args.checkpoint))
    config = replace(config, eval=replace(config.eval, score_thresh=args.score))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    out, predictions, failed = Path(args.out), {}, 0
    stems = Counter(path.stem for path in paths)
    for path in paths:
        try:
            image = read_image(path)
        except UserError as error:  # one bad file of a folder does not keep the others from being looked at
            print(f"skipped: {error}", file=sys.stderr)
            failed += 1
            continue
        found = predict(model, config, image)
        name = path.stem if stems[path.stem] == 1 else path.name
        texts = [
            f"{class_names[label]} {score:.2f}" for label, score in zip(found["labels"], found["scores"], strict=True)
        ]
        save_picture(draw_boxes(image, found["boxes"], found["labels"], texts), out / f"{name}.boxes.png")
        written = [f"{out / name}.boxes.png"]
        if found["probabilities"] is not None:
            sides = draw_sides(image, found, texts, args.boxes, config.model.head.delta)
            written.append(f"{out / name}.sides.png")
            save_picture(sides, Path(written[-1]))
        predictions[str(path)] = to_json(found, class_names, config.model.head.delta)
        print(f"{path}: {len(texts)} objects  {'  '.join(written)}")
    write_json(out / "predictions.json", predictions)
    print(f"{sum(map(len, predictions.values()))} objects in {len(predictions)} images: {out / 'predictions.json'}")
    if failed:
        raise UserError(f"{failed} of {len(paths)} images could not be read, see above; the others are done")


def find_images(path: Path) -> list[Path]:
    """The image itself, or the images in a folder by name."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no image or folder {path}")
    images = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
    if not images:
        raise UserError(f"no images in {path}; known endings: {', '.join(sorted(SUFFIXES))}")
    return images


def draw_sides(
    image: np.ndarray, found: dict[str, np.ndarray], texts: list[str], count: int, delta: float
) -> np.ndarray:
    """The distributions of the `count` best detections."""
    best = {key: value[:count] for key, value in found.items()}
    columns = (best[key] for key in ("boxes", "points", "strides", "probabilities", "labels"))
    return draw_distributions(image, *columns, texts[:count], delta=delta)


def predict(model: Detector, config: Config, image: np.ndarray) -> dict[str, np.ndarray]:
    """Detections of an RGB image (H, W, 3), best first, in its pixels: boxes (M, 4), labels, scores (M,), and for each
    the predicting point (M, 2), its stride (M,) and the probabilities (M, 4, N) of its sides, None without any."""
    height, width = image.shape[:2]
    size = keep_ratio_size(height, width, short_side=config.data.short_side_in_eval, long_side=config.data.long_side)
    resized, no_boxes = resize(image, np.zeros((0, 4), np.float32), size)
    sample = Sample(resized, no_boxes, np.zeros(0, np.int64), image_id=0, orig_size=(height, width))
    detections, output = detect(model, collate([sample]).to(next(model.parameters()).device), config.eval)
    index = detections.point_index[0]
    scale = np.array([width / size[1], height / size[0]])
    general = isinstance(model.box_repr, GeneralBox)
    return {
        "boxes": detections.boxes_xyxy[0].cpu().numpy(),
        "labels": detections.labels[0].cpu().numpy(),
        "scores": detections.scores[0].cpu().numpy(),
        "points": output.grid.points[index].cpu().numpy() * scale,
        "strides": output.grid.strides[index].cpu().numpy() * scale.mean(),
        "probabilities": model.box_repr.probabilities(output.reg_pred[0, index]).cpu().numpy() if general else None,
    }


def to_json(found: dict[str, np.ndarray], class_names: tuple[str, ...], delta: float) -> list[dict[str, Any]]:
    """Label, score, box (x, y, width, height) and the deviations of its sides (l, t, r, b), all in pixels.

    Deviations only where sides are distributions.
    """
    boxes = np.concatenate([found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], axis=1)
    entries = [
        {
            "label": class_names[label],
            "score": round(float(score), 4),
            "bbox": [round(float(value), 2) for value in box],
        }
        for label, score, box in zip(found["labels"], found["scores"], boxes, strict=True)
    ]
    if found["probabilities"] is None:
        return entries
    positions = bin_positions(found["points"], found["strides"], found["probabilities"].shape[-1], delta)
    _, deviations = mean_and_std(positions, found["probabilities"])
    sides = [[round(float(value), 2) for value in deviation] for deviation in deviations]
    return [entry | {"side_std": side_std} for entry, side_std in zip(entries, sides, strict=True)]


if __name__ == "__main__":
    run(main, ARGS)
