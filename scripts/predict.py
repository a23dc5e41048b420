"""Detect objects in images, and draw the distribution of each side of their boxes."""

import argparse
import os
import sys
from pathlib import Path

from gfl.common.arguments import fraction, whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Detect objects in images, and in folders of images with their sub-folders. Writes NAME.boxes.png "
        "with boxes, labels and scores, NAME.sides.png with the four side distributions of the most confident boxes, "
        "and predictions.json.",
        epilog="example: python scripts/predict.py runs/gfl_r18_shapes data/shapes/val -o pictures --limit 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="a run folder (its best.pt, else its last.pt) or a .pt file")
    parser.add_argument("images", nargs="+", help="images, or folders of images")
    parser.add_argument("-o", "--out", required=True, help="folder for the pictures and predictions.json")
    parser.add_argument("--score", type=fraction, default=0.3, help="minimum score of a detection (default 0.3)")
    parser.add_argument("--boxes", type=whole_number(), default=3, help="boxes whose sides are drawn (default 3)")
    parser.add_argument("--limit", type=whole_number(1), help="stop after this many images")
    parser.add_argument(
        "--override", nargs="+", default=[], metavar="section.key=value", help="override the checkpoint's config"
    )
    return parser.parse_intermixed_args()  # images may also follow a flag


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce(f"loading libraries and {ARGS.checkpoint}")

from collections.abc import Sequence
from typing import Any

import numpy as np

from gfl.checkpoint import load_detector
from gfl.common.errors import UserError, run
from gfl.common.file_kinds import is_url
from gfl.common.files import distinct_file_names, output_folder, write_json
from gfl.common.progress import print_line
from gfl.common.text import printable
from gfl.data.image_errors import url_error
from gfl.data.image_files import IMAGE_SUFFIXES, find_images, read_image
from gfl.evaluation.draw import draw_boxes, draw_distributions, save_image
from gfl.evaluation.inference import Prediction
from gfl.model.precision import set_backends
from gfl.tools.prepare.find_files import count_note, unknown_files


def main(args: argparse.Namespace) -> None:
    out = output_folder(args.out)
    paths = list_images(args.images, out)[: args.limit]
    names = output_names(paths)
    check_inputs_stay(paths, out, names)
    detector = load_detector(args.checkpoint, args.override)
    set_backends(detector.config.optim)
    data = detector.config.data
    predictions, failed = {}, 0
    for path, name in zip(paths, names, strict=True):
        try:
            image = read_image(path, bit_depth=data.bit_depth, max_pixels=data.max_pixels)
        except UserError as error:  # one bad file does not stop the others
            if error.code in ("pixel_type", "too_many_pixels"):
                error = UserError(f"{error} (settings follow --override)", code=error.code)
            if len(paths) == 1:
                raise error
            print(f"skipped: {printable(str(error))}", file=sys.stderr)
            failed += 1
            continue
        found = detector.predict(image, score_thresh=args.score)
        draw(image, found, out, name, max_sides=args.boxes)
        predictions[str(path)] = to_json(found)
        print_line(f"{path}: {len(found.scores)} objects")
    write_json(out / "predictions.json", predictions)
    count = sum(map(len, predictions.values()))
    print_line(f"{count} objects in {len(predictions)} images: pictures and predictions.json in {out}")
    if predictions and not count:
        print_line(f"note: no score reaches {args.score:g}; a lower --score shows what scores less")
    if failed:
        raise UserError(f"{failed} of {len(paths)} images could not be read, see above; the others are written")


def list_images(arguments: Sequence[str], out: Path) -> list[Path]:
    """The images themselves and those in the folders by name, each once, without the pictures in the output folder.

    Raises `UserError` for an argument that is neither an image nor a folder with some.
    """
    images: list[Path] = []
    for argument in arguments:
        if is_url(argument):
            raise url_error(argument)
        path = Path(argument)
        if path.is_file():
            images.append(path)
            continue
        if not path.is_dir():
            raise UserError(f"no image or folder {path}")
        found = find_images(path)
        others = count_note(unknown_files(path), "files have no suffix of an image and are left out")
        if path.absolute() in out.absolute().parents:
            found = [image for image in found if out.absolute() not in image.absolute().parents]
        if not found:
            endings = f"known endings: {', '.join(IMAGE_SUFFIXES)}"
            raise UserError("; ".join((f"no images in {path} or below", *others, endings)), code="no_images")
        for note in others:
            print_line(f"note: {note}")
        images += found
    return list(dict.fromkeys(images))


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for the pictures of each image: its stem; where others have it too, its name; else with its folders."""
    names = {path: path.stem for path in paths}
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        known: dict[str, list[Path]] = {}
        for path, name in names.items():
            known.setdefault(name, []).append(path)
        for path in (path for same in known.values() if len(same) > 1 for path in same):
            names[path] = "_".join(path.parts[-parts:]).replace(os.sep, "_")
    return distinct_file_names([names[path] for path in paths])  # "a_b/c.png" and "a/b_c.png" are still the same


def check_inputs_stay(paths: Sequence[Path], out: Path, names: Sequence[str]) -> None:
    """Raises `UserError` if a picture would take the place of one of the images."""
    written = {(out / f"{name}.{kind}.png").absolute() for name in names for kind in ("boxes", "sides")}
    if replaced := [path for path in paths if path.absolute() in written]:
        raise UserError(f"pictures in {out} would replace the image {replaced[0]}; choose another --out", code="output")


def draw(image: np.ndarray, found: Prediction, out: Path, name: str, *, max_sides: int) -> None:
    """Write `name`.boxes.png into `out`, and `name`.sides.png where sides are distributions."""
    texts = [f"{label} {score:.2f}" for label, score in zip(found.class_names, found.scores, strict=True)]
    save_image(draw_boxes(image, found.boxes_xyxy, found.labels, texts), out / f"{name}.boxes.png")
    if found.sides is None or found.sides.probabilities is None:
        return
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
    save_image(sides, out / f"{name}.sides.png")


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
