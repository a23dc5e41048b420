"""Time the class losses with their gradient, as trained and by the elementwise definition, and what they allocate."""

import argparse

from gfl.common.arguments import whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="CPU time and memory of QFL, forward and backward, on random logits of 2 x 800 x 1088 pixels.",
        epilog="example: OMP_NUM_THREADS=1 python scripts/benchmark_losses.py --classes 80 365 1203",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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

import torch

from gfl.common.errors import run
from gfl.common.progress import print_line
from gfl.method.losses import quality_focal_loss
from gfl.method.points import PointLayout, make_point_grid
from gfl.method.quality import JointQuality
from gfl.structures import HeadOutput

STRIDES = (8, 16, 32, 64, 128)


def main(args: argparse.Namespace) -> None:
    grid = make_point_grid([(-(-800 // stride), -(-1088 // stride)) for stride in STRIDES], PointLayout(STRIDES))
    print_line("classes  trained ms  elementwise ms  ratio  allocated in logits, trained  elementwise")
    for classes in args.classes:
        shape = (2, len(grid.points))
        output = HeadOutput((torch.randn(*shape, classes) - 4.6).requires_grad_(), torch.zeros(0), None, grid)
        labels, quality = torch.randint(classes, shape), torch.rand(shape)
        positive = torch.rand(shape) < 0.005
        arguments = output, labels, positive, torch.rand(shape).lt(0.95) | positive, quality
        times: dict = {JointQuality().class_loss: [], elementwise: []}
        for _ in range(args.repeats + 1):
            for function, found in times.items():
                start = time.process_time()
                torch.autograd.grad(function(*arguments), output.cls_logits)
                found.append(time.process_time() - start)
        ours, theirs = (1e3 * statistics.median(found[1:]) for found in times.values())
        peaks = [peak(function, arguments) for function in times]
        print_line(
            f"{classes:7}  {ours:10.1f}  {theirs:14.1f}  {ours / theirs:5.2f}  {peaks[0]:28.2f}  {peaks[1]:11.2f}"
        )


def elementwise(output, labels, positive, trained, quality) -> torch.Tensor:
    """The definition, with targets of the logits' size."""
    target = torch.zeros_like(output.cls_logits).scatter_(-1, labels[..., None], (quality * positive)[..., None])
    return quality_focal_loss(output.cls_logits, target).masked_fill(~trained[..., None], 0).sum()


def peak(function, arguments) -> float:
    """The most that is allocated at a time, in sizes of the logits."""
    logits = arguments[0].cls_logits
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.autograd.grad(function(*arguments), logits)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held) / (logits.numel() * logits.element_size())


if __name__ == "__main__":
    run(main, ARGS)
