"""Time assignment by the number of boxes, and class losses by the number of classes with what they allocate."""

import argparse

from gfl.common.arguments import whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="CPU time of ATSS, and of QFL forward and backward with the memory it takes, on random boxes and "
        "logits of 2 x 800 x 1088 pixels; QFL as trained and as it is usually computed.",
        epilog="example: OMP_NUM_THREADS=1 python scripts/benchmark_criterion.py --classes 80 365 1203",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--boxes", type=whole_number(1), nargs="+", default=[8, 100, 500], help="of each image")
    parser.add_argument("--classes", type=whole_number(1), nargs="+", default=[80, 365, 1203])
    parser.add_argument("--repeats", type=whole_number(1), default=7, help="of each, in alternation (default 7)")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce("loading libraries")

import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gfl.common.errors import run
from gfl.common.progress import print_line
from gfl.method.assign import assign_atss
from gfl.method.losses import quality_focal_loss
from gfl.method.points import PointLayout, make_point_grid
from gfl.method.quality import JointQuality
from gfl.structures import HeadOutput, PointGrid, Targets

HEIGHT, WIDTH = 800, 1088
STRIDES = (8, 16, 32, 64, 128)


def main(args: argparse.Namespace) -> None:
    grid = make_point_grid([(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES], PointLayout(STRIDES))
    print_line("boxes  ATSS ms (lowest to highest)")
    for boxes in args.boxes:
        arguments = grid, random_targets(boxes), torch.ones(2, len(grid.points), dtype=torch.bool)
        found = [cpu_ms(lambda: assign_atss(*arguments)) for _ in range(args.repeats + 1)][1:]  # noqa: B023
        print_line(f"{boxes:5}  {statistics.median(found):7.1f} ({min(found):.1f} to {max(found):.1f})")
    print_line("classes  QFL ms  usual ms  ratio (lowest to highest)  allocated in logits, QFL  usual")
    for classes in args.classes:
        arguments = random_outputs(grid, classes)
        torch.testing.assert_close(JointQuality().class_loss(*arguments), usual_loss(*arguments))
        times = {JointQuality().class_loss: [], usual_loss: []}
        for _ in range(args.repeats + 1):
            for loss, found in times.items():
                found.append(cpu_ms(lambda: torch.autograd.grad(loss(*arguments), arguments[0].cls_logits)))  # noqa: B023
        ours, usual = (found[1:] for found in times.values())
        ratios = [a / b for a, b in zip(ours, usual, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        peaks = [peak(loss, arguments) for loss in times]
        print_line(
            f"{classes:7}  {statistics.median(ours):6.1f}  {statistics.median(usual):8.1f}  {spread:>25}"
            f"  {peaks[0]:24.2f}  {peaks[1]:5.2f}"
        )


def random_targets(boxes: int) -> Targets:
    corners = torch.rand(2, boxes, 2) * torch.tensor([WIDTH, HEIGHT]) * 0.8
    boxes_xyxy = torch.cat([corners, corners + 8 + torch.rand(2, boxes, 2) ** 2 * 300], dim=-1)
    return Targets(boxes_xyxy, torch.zeros(2, boxes, dtype=torch.int64), torch.ones(2, boxes, dtype=torch.bool))


def random_outputs(grid: PointGrid, classes: int) -> tuple[HeadOutput, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of a class loss."""
    shape = (2, len(grid.points))
    output = HeadOutput((torch.randn(*shape, classes) - 4.6).requires_grad_(), torch.zeros(0), None, grid)
    positive = torch.rand(shape) < 0.005
    return output, torch.randint(classes, shape), positive, torch.rand(shape).lt(0.95) | positive, torch.rand(shape)


def usual_loss(output: HeadOutput, labels: Tensor, positive: Tensor, trained: Tensor, quality: Tensor) -> Tensor:
    """As mmdetection computes it: of every logit as if none were positive, then of the positives in its place."""
    logits, rows = output.cls_logits.flatten(0, 1), positive.flatten().nonzero().squeeze(1)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    loss = cross_entropy * logits.sigmoid().pow(2.0)
    at_label = rows, labels.flatten()[rows]
    loss[at_label] = quality_focal_loss(logits[at_label], quality.flatten()[rows])
    return (loss.sum(dim=1) * trained.flatten()).sum()


def cpu_ms(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def peak(function: Callable[..., Tensor], arguments: tuple) -> float:
    """The most that is allocated at a time, in sizes of the logits."""
    logits = arguments[0].cls_logits
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.autograd.grad(function(*arguments), logits)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held) / (logits.numel() * logits.element_size())


if __name__ == "__main__":
    run(main, ARGS)
