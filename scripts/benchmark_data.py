"""Time what a loader process does with images, and the reading of a COCO json, beside the libraries usually used."""

import argparse

from gfl.common.arguments import whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce

EPILOG = """example: OMP_NUM_THREADS=1 python scripts/benchmark_data.py images configs/gfl_r50_fpn_1x_coco.yaml
or: OMP_NUM_THREADS=1 python scripts/benchmark_data.py json --images 118287
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser(
        "images",
        help="a config's training images: read, resized, flipped and batched",
        description="CPU time per image of a loader process, and of the way from a resized image to a normalised "
        "tensor beside albumentations' Normalize and ToTensorV2.",
    )
    images.add_argument("config", help="YAML file, see configs/")
    images.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help="override the config")
    images.add_argument("--count", type=whole_number(1), default=64, help="images (default 64)")
    images.add_argument("--repeats", type=whole_number(1), default=5, help="of all of them (default 5)")
    json = commands.add_parser(
        "json",
        help="a made json of COCO's kind: read and checked",
        description="CPU time and peak memory of load_coco and of pycocotools' reader, each in its own process, for a "
        "made json with seven boxes per image and their outlines.",
    )
    json.add_argument("--images", type=whole_number(1), default=12_000, help="COCO train has 118287 (default 12000)")
    json.add_argument("--repeats", type=whole_number(1), default=3, help="of each reader, in turn (default 3)")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce("loading libraries")

import contextlib
import io
import json
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from gfl.common.errors import run
from gfl.common.progress import print_line
from gfl.config_file import load_config
from gfl.data.coco import load_coco
from gfl.data.dataset import CocoDataset, Sample, collate
from gfl.model.detector import PIXEL_MEAN, PIXEL_STD, normalize_images

BOXES, CORNERS = 7, 24  # of an image; of an outline, about as many bytes as COCO's


def main(args: argparse.Namespace) -> None:
    (time_images if args.command == "images" else time_json)(args)


def time_images(args: argparse.Namespace) -> None:
    """Per image: read to collated, and the two ways from resized images to a normalised batch."""
    import albumentations  # the peer: not needed otherwise
    from albumentations.pytorch import ToTensorV2

    config = load_config(args.config, args.overrides)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    data = load_coco(config.data.train.annotations, config.data.train.images)
    dataset = CocoDataset(data, config.data, training=True)
    keys = [(0, index) for index in range(min(args.count, len(data)))]
    samples = [dataset[key] for key in keys]
    mean, std = np.array(PIXEL_MEAN) / 255, np.array(PIXEL_STD) / 255
    normalize = albumentations.Compose([albumentations.Normalize(mean, std), ToTensorV2()])

    def collate_normalized(sample: Sample) -> torch.Tensor:
        batch = collate([sample])
        return normalize_images(batch.images, batch.image_sizes)

    ways = {
        "read, resized and flipped": lambda: [dataset[key] for key in keys],
        "collated, as a loader process does": lambda: [collate([sample]) for sample in samples],
        "collated and normalised": lambda: [collate_normalized(sample) for sample in samples],
        "albumentations' Normalize and ToTensorV2": lambda: [normalize(image=sample.image) for sample in samples],
    }
    # Both ways must give the same numbers, or their times say nothing.
    expected = normalize(image=samples[0].image)["image"]
    found = collate_normalized(samples[0])[0, :, : expected.shape[1], : expected.shape[2]]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    times = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            times[name].append(1e3 * cpu_seconds(way) / len(keys))
    print_line(f"{len(keys)} images of {data.annotations}, median of {args.repeats} (lowest to highest), ms per image")
    for name, found in times.items():
        print_line(f"{statistics.median(found):7.2f} ({min(found):.2f} to {max(found):.2f})  {name}")
    read, collated, normalised, peer = (statistics.median(found) for found in times.values())
    print_line(
        f"a loader process: {1e3 / (read + collated):.0f} images/s; with albumentations {1e3 / (read + peer):.0f}"
    )
    print_line(f"collated and normalised / albumentations: {normalised / peer:.2f}")


def time_json(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        write_set(path, args.images)
        print_line(f"{args.images} images, {BOXES * args.images} boxes, {path.stat().st_size / 1e6:.0f} MB")
        found: dict[str, list] = {"load_coco": [], "pycocotools": []}
        for _ in range(args.repeats):
            for reader, measured in found.items():
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    measured.append(process.apply(read, (reader, str(path))))
    for reader, measured in found.items():
        seconds, peaks = zip(*measured, strict=True)
        print_line(
            f"{reader}: {statistics.median(seconds):.2f} s of CPU time ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"{max(peaks):.2f} GiB at most"
        )
    ratios = [ours[0] / theirs[0] for ours, theirs in zip(*found.values(), strict=True)]
    print_line(f"load_coco / pycocotools: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def read(reader: str, path: str) -> tuple[float, float]:
    """CPU seconds of a reader in this new process, and the GiB that it took beyond what was there before it."""
    from pycocotools.coco import COCO

    before = peak_gib()
    if reader == "load_coco":
        seconds = cpu_seconds(lambda: load_coco(path, str(Path(path).parent)))
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            seconds = cpu_seconds(lambda: COCO(path))
    return seconds, peak_gib() - before


def write_set(path: Path, images: int) -> None:
    """A json of boxes with outlines, and an empty file per image: only their names are looked at."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(400, 641, (images, 2))
    entries: list[dict[str, Any]] = []
    listed = []
    for number, (height, width) in enumerate(sizes.tolist(), 1):
        name = f"{number:012}.jpg"
        (path.parent / name).touch()
        listed.append({"id": number, "file_name": name, "height": height, "width": width})
        sides = (4 + rng.random((BOXES, 2)) * np.array([width, height]) * 0.4).round(2)
        corners = (rng.random((BOXES, 2)) * (np.array([width, height]) - sides)).round(2)
        outlines = (corners[:, None] + rng.random((BOXES, CORNERS, 2)) * sides[:, None]).round(2)
        boxes = np.concatenate([corners, sides], axis=1).tolist()
        classes = rng.integers(1, 81, BOXES).tolist()
        for box, outline, category in zip(boxes, outlines.reshape(BOXES, -1).tolist(), classes, strict=True):
            ids = {"id": len(entries) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
            entries.append(ids | {"bbox": box, "area": box[2] * box[3] / 2, "segmentation": [outline]})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    path.write_text(json.dumps({"images": listed, "annotations": entries, "categories": categories}))


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def peak_gib() -> float:
    """Linux's own record; `resource` also counts what this process's parent had when it was started."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2**20


if __name__ == "__main__":
    run(main, ARGS)
