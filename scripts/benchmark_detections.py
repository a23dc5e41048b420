"""Time what follows the network: candidates, boxes, NMS; per image, in batches of one and of several images."""

import argparse

from gfl.common.arguments import whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="CPU time per image from raw outputs to detections, on random outputs for 800 x 1088 pixels with "
        "about 900 candidates of 30 objects per image. The same images in batches of each size, in alternation.",
        epilog="example: OMP_NUM_THREADS=1 python scripts/benchmark_detections.py --batches 1 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batches", type=whole_number(1), nargs="+", default=[1, 8], help="images per batch")
    parser.add_argument("--classes", type=whole_number(1), default=80)
    parser.add_argument("--repeats", type=whole_number(1), default=20, help="of each, in alternation (default 20)")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce("loading libraries")

import statistics
import time

import torch
from torch import nn

from gfl.common.errors import run
from gfl.common.progress import print_line
from gfl.config import EvalConfig
from gfl.evaluation.inference import detect
from gfl.method.box_representation import GeneralBox
from gfl.method.points import PointLayout, make_point_grid
from gfl.method.quality import JointQuality
from gfl.model.detector import DenseDetector
from gfl.structures import Batch, HeadOutput, PointGrid, Targets

HEIGHT, WIDTH = 800, 1088
STRIDES = (8, 16, 32, 64, 128)
OBJECTS, CANDIDATES = 30, 40  # per image, per object


class Replayed(DenseDetector):
    """A detector whose network has been run already."""

    def __init__(self, output: HeadOutput) -> None:
        super().__init__(nn.Identity(), nn.Identity(), nn.Identity(), JointQuality(), GeneralBox())
        self.output = output

    def forward(self, images: torch.Tensor) -> HeadOutput:
        return self.output


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    grid = make_point_grid([(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES], PointLayout(STRIDES))
    times: dict[int, list[float]] = {}
    models = {size: Replayed(random_output(grid, size, args.classes)) for size in args.batches}
    for _ in range(args.repeats + 1):
        for size, model in models.items():
            images = empty_batch(size)
            start = time.process_time()
            detect(model, images, EvalConfig())
            times.setdefault(size, []).append(1e3 * (time.process_time() - start) / size)
    print_line("batch  ms per image (lowest to highest)")
    for size, found in times.items():
        print_line(f"{size:5}  {statistics.median(found[1:]):12.2f} ({min(found[1:]):.2f} to {max(found[1:]):.2f})")


def random_output(grid: PointGrid, images: int, classes: int) -> HeadOutput:
    """Logits far below the threshold but near the objects, which share points as neighbours in a row do."""
    points = len(grid.points)
    cls_logits = torch.randn(images, points, classes) - 9
    for of_image in cls_logits:
        centre = torch.randint(points, (OBJECTS, 1))
        near = (centre + torch.randint(-30, 31, (OBJECTS, CANDIDATES))).clamp(0, points - 1)
        of_image[near, torch.randint(classes, (OBJECTS, 1))] = torch.randn(OBJECTS, CANDIDATES)
    return HeadOutput(cls_logits, torch.randn(images, points, 4, 17), None, grid)


def empty_batch(images: int) -> Batch:
    sizes, none = torch.tensor([[HEIGHT, WIDTH]] * images), torch.zeros(images, 1, dtype=torch.bool)
    targets = Targets(torch.zeros(images, 1, 4), none.long(), none)
    # The network's input is not read: one pixel, so that its normalisation takes no time.
    return Batch(torch.zeros(images, 3, 1, 1, dtype=torch.uint8), sizes, targets, torch.arange(images), sizes)


if __name__ == "__main__":
    run(main, ARGS)
