"""Time a training step and its parts on random data, and report the peak memory."""

import argparse

from gfl.common.arguments import whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Median time of the parts of a training step and peak memory, on random images with random boxes.",
        epilog="example: python scripts/benchmark.py configs/gfl_r50_fpn_1x_coco.yaml --batch 2 --size 800 1088",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help="override the config")
    parser.add_argument("--batch", type=whole_number(1), default=2, help="images per step (default 2)")
    parser.add_argument(
        "--size", type=whole_number(1, 2**15), nargs=2, default=[800, 1088], metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--classes", type=whole_number(1), default=80, help="number of classes (default 80)")
    parser.add_argument("--boxes", type=whole_number(1), default=8, help="boxes per image (default 8)")
    parser.add_argument(
        "--steps", type=whole_number(1), default=5, help="measured steps after one warm-up step (default 5)"
    )
    return parser.parse_intermixed_args()  # overrides may also follow a flag


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce(f"loading libraries and {ARGS.config}")

import resource
import statistics
import time

import torch

from gfl.build import build_criterion, build_detector
from gfl.common.errors import UserError, run
from gfl.common.progress import print_line
from gfl.config_file import load_config
from gfl.evaluation.inference import default_device
from gfl.model.detector import normalize_images
from gfl.model.precision import autocast_dtype, memory_format
from gfl.structures import SIZE_DIVISOR, Targets
from gfl.training.optim import build_optimizer


def main(args: argparse.Namespace) -> None:
    if any(side % SIZE_DIVISOR for side in args.size):
        raise UserError(f"--size must be multiples of {SIZE_DIVISOR}")
    config = load_config(args.config, args.overrides)
    device = default_device()
    torch.manual_seed(config.seed)
    model = build_detector(config, args.classes).to(device, memory_format=memory_format(config.optim)).train()
    criterion = build_criterion(config, model.quality, model.box_repr)
    optimizer = build_optimizer(model, config.optim)
    dtype = autocast_dtype(config.optim, device)
    images, sizes, targets = random_batch(args, device)

    def forward():
        batch = normalize_images(images, sizes).contiguous(memory_format=memory_format(config.optim))
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return model(batch)

    times: dict[str, list[float]] = {"forward": [], "losses": [], "backward": [], "update": []}
    for _ in range(args.steps + 1):
        output = timed(times["forward"], device, forward)
        loss = timed(times["losses"], device, lambda: sum(criterion(output, targets, sizes).values()))  # noqa: B023
        timed(times["backward"], device, loss.backward)
        timed(times["update"], device, optimizer.step)
        optimizer.zero_grad(set_to_none=True)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    total = sum(medians.values())
    print_line(
        f"{args.config}: {args.batch} x {args.size[0]} x {args.size[1]}, {device.type}, {dtype or torch.float32}"
    )
    print("  ".join(f"{name} {1e3 * value:.1f} ms" for name, value in medians.items()))
    print(f"step {1e3 * total:.1f} ms (median of {args.steps}), {args.batch / total:.2f} images/s")
    print(f"peak memory {peak_memory(device) / 2**30:.2f} GiB")


def random_batch(args: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    """uint8 images (B, 3, H, W), their sizes (B, 2) and targets with boxes of at least an eighth of the image."""
    height, width = args.size
    images = torch.randint(0, 256, (args.batch, 3, height, width), dtype=torch.uint8)
    corners = torch.rand(args.batch, args.boxes, 2) * 0.5
    boxes = torch.cat([corners, corners + 0.125 + 0.375 * torch.rand_like(corners)], dim=-1)
    boxes = boxes * torch.tensor([width, height, width, height])
    labels = torch.randint(0, args.classes, boxes.shape[:2])
    targets = Targets(boxes.to(device), labels.to(device), torch.ones_like(labels, dtype=torch.bool).to(device))
    return images.to(device), torch.tensor([args.size] * args.batch, device=device), targets


def timed(times: list[float], device: torch.device, function):
    """Call `function` and append its duration in seconds, including the work of the device."""
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    times.append(time.perf_counter() - start)
    return result


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    run(main, ARGS)
