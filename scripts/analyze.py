"""What a detector's scores and side distributions say: pictures and statistics beyond AP."""

import argparse
import os
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score against IoU of the detections of one or several checkpoints, the regression targets of the "
        "data in strides and the reg_max they ask for, the shapes of the side distributions with examples, and on "
        "soft shapes the predicted spread of every side against the true blur of its edge. Writes pictures and "
        "analysis.json.",
        epilog="example: python scripts/analyze.py runs/gfl_r18_shapes -o analysis\n"
        "side by side: python scripts/analyze.py runs/joint runs/branch -o analysis",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", nargs="+", help="run folders (their best.pt, else last.pt) or .pt files")
    parser.add_argument("-o", "--out", required=True, help="folder for the pictures and analysis.json")
    parser.add_argument("--data", nargs=2, metavar=("JSON", "IMAGES"), help="another split than the config's data.val")
    parser.add_argument("--score", type=float, default=0.3, help="least score for the shapes of sides (default 0.3)")
    parser.add_argument("--examples", type=int, default=3, help="boxes drawn per shape (default 3)")
    return parser.parse_args()


ARGS = parse_args() if __name__ == "__main__" else None  # before the heavy imports, so that --help answers at once

from typing import Any

import numpy as np

from gfl.checkpoint import load_detector
from gfl.common.errors import UserError, run
from gfl.common.files import write_json
from gfl.common.progress import progress_bar
from gfl.config import Config
from gfl.data.coco import CocoData, image_path, load_coco
from gfl.data.image_files import read_image
from gfl.data.loader import build_eval_loader
from gfl.evaluation.analysis import (
    SHAPES,
    accurate,
    score_statistics,
    side_shapes,
    spread_statistics,
)
from gfl.evaluation.draw import draw_distributions, save_image
from gfl.evaluation.inference import bin_positions
from gfl.evaluation.plots import plot_scores, plot_shapes, plot_spread, plot_targets
from gfl.evaluation.predictions import Predictions, collect_predictions
from gfl.training.data_fit import regression_targets, target_statistics


def main(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if out.is_file():
        raise UserError(f"--out {out} is a file; choose a folder")
    statistics: dict[str, Any] = {}
    scores, shares = [], []
    for name, checkpoint in zip(short_names(args.checkpoints), args.checkpoints, strict=True):
        config, data, found = collect(checkpoint, args.data)
        statistics[name] = {
            "checkpoint": checkpoint,
            "annotations": data.annotations,
            "scores": score_statistics(found),
        }
        scores.append((name, found, statistics[name]["scores"]))
        statistics[name]["targets"] = targets(name, config, data, out)
        if found.probabilities is not None:
            statistics[name]["shapes"] = shapes(name, config, data, found, out, args)
            shares.append((name, statistics[name]["shapes"]))
        statistics[name]["spread"] = spread(name, data, found, out)
        print(summary(name, statistics[name]))
    plot_scores(scores, out / "scores.png")
    if shares:
        plot_shapes(shares, out / "shapes.png")
    write_json(out / "analysis.json", statistics)
    pictures = ", ".join(sorted(path.name for path in out.glob("*.png")))
    print(f"\nstatistics: {out / 'analysis.json'}\npictures in {out}: {pictures}")


def short_names(checkpoints: list[str]) -> list[str]:
    """A name for each checkpoint: its folder's, its own, or as much of the path as tells them apart."""
    names = [os.path.abspath(checkpoint).removesuffix(".pt").removesuffix(".pth") for checkpoint in checkpoints]
    parts = [Path(name).parts[1:] for name in names]  # without the root
    if len(set(parts)) < len(parts):
        raise UserError("the same checkpoint is named twice")
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return ["-".join(part[-length:]) for part in parts]


def collect(checkpoint: str, split: list[str] | None) -> tuple[Config, CocoData, Predictions]:
    """A checkpoint's config, the split and the detections on it."""
    detector = load_detector(checkpoint)
    model, config, path = detector.model, detector.config, detector.checkpoint
    annotations, images = split or (config.data.val.annotations, config.data.val.images)
    if not annotations:
        raise UserError(f"{path} names no data to analyze; give it with --data ANNOTATIONS.json IMAGES/")
    data = load_coco(annotations, images, detector.class_names)
    if not len(data.labels):
        raise UserError(f"{annotations} has no boxes to compare detections with")
    loader = build_eval_loader(data, config.data, batch=config.eval.batch)
    with progress_bar(total=len(loader), unit="batch") as bar:
        found = collect_predictions(model, loader, data, config, on_batch=bar.update)
    if not len(found.scores):
        raise UserError(f"{path} detects nothing in {annotations} above eval.score_thresh {config.eval.score_thresh}")
    return config, data, found


def targets(name: str, config: Config, data: CocoData, out: Path) -> dict[str, Any]:
    """Figures and histogram of what the split's boxes ask of the box branch."""
    learned = regression_targets(data, config)
    statistics = target_statistics(learned, config)
    if len(learned.distances):
        plot_targets(name, learned.distances, statistics, out / f"{name}.targets.png")
    return statistics


def shapes(
    name: str, config: Config, data: CocoData, found: Predictions, out: Path, args: argparse.Namespace
) -> dict[str, float]:
    """Shares of the shapes among the sides of confident detections, and examples of each drawn on its image."""
    confident = np.flatnonzero(found.scores >= args.score)
    kinds = side_shapes(found.probabilities[confident], config.model.head.delta)
    for kind in SHAPES:
        counts = (kinds == kind).sum(axis=1)
        with_most = confident[np.lexsort((-found.scores[confident], -counts))]
        most = with_most[: args.examples][np.sort(counts)[::-1][: args.examples] > 0]
        for number, detection in enumerate(most):
            example = draw_example(found, int(detection), data, config)
            save_image(example, out / f"{name}.{kind.replace(' ', '_')}.{number}.png")
    return {kind: float((kinds == kind).mean()) if kinds.size else 0.0 for kind in SHAPES}


def draw_example(found: Predictions, detection: int, data: CocoData, config: Config) -> np.ndarray:
    """The distributions of one detection around its image."""
    row = int(found.images[detection])
    image = read_image(image_path(data, row), tuple(data.sizes[row].tolist()))
    one = slice(detection, detection + 1)
    positions = bin_positions(
        found.points[one],
        found.strides[one, None] * np.tile(found.scales[one], 2),
        found.probabilities.shape[-1],
        delta=config.model.head.delta,
    )
    label = data.class_names[found.labels[detection]]
    text = f"{label} {found.scores[detection]:.2f}, IoU {found.iou[detection]:.2f}"
    return draw_distributions(
        image,
        found.boxes_xyxy[one],
        found.points[one],
        positions,
        found.probabilities[one],
        found.labels[one],
        [text],
    )


def spread(name: str, data: CocoData, found: Predictions, out: Path) -> dict[str, Any] | None:
    """Figures and pictures of the predicted spreads where the json tells the blur of edges."""
    found = accurate(found)
    statistics = spread_statistics(found, data.sizes)
    if statistics:
        plot_spread(name, found, statistics, out / f"{name}.spread.png")
    return statistics


def summary(name: str, statistics: dict[str, Any]) -> str:
    """The main statistics as text."""

    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3f}"

    scores, goal = statistics["scores"], statistics["targets"]
    lines = [
        f"\n{name}: {scores['detections']} detections on {statistics['annotations']}",
        f"scores   rank correlation with IoU {number(scores['spearman'])}, "
        f"{number(scores['spearman_on_objects'])} over the {scores['detections_on_objects']} with IoU >= 0.5",
    ]
    if goal["points"]:
        lines.append(
            f"targets  {goal['share_beyond']:.3%} of the sides beyond reg_max {goal['reg_max']}, the largest at "
            f"{goal['largest']:.1f} strides; reg_max {goal['recommended_reg_max']} holds 99.9 % of them"
        )
    else:
        lines.append("targets  no point learns any box: they are too small for the strides, or outside their images")
    if "shapes" in statistics:
        lines.append("sides    " + ", ".join(f"{share:.1%} {kind}" for kind, share in statistics["shapes"].items()))
    if found := statistics["spread"]:
        lines.append(
            f"spread   rank correlation with the true blur {number(found['spearman'])} over {found['sides']} sides, "
            f"median {found['median_predicted']:.1f} px for {found['median_blur']:.1f} px"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, ARGS)
