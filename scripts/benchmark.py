"""Time a training step and its parts on random data, alone or in turn with other detectors; report peak memory."""

import argparse
import os

from gfl.common.arguments import whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce

EPILOG = """example: python scripts/benchmark.py configs/gfl_r50_fpn_1x_coco.yaml --batch 2 --size 800 1088
with others:
  python scripts/benchmark.py configs/gfl_r50_fpn_1x_coco.yaml --size 320 320 --against fcos,retinanet
  python scripts/benchmark.py configs/gfl_r50_fpn_1x_coco.yaml --batch 1 --task inference \\
      --against fcos,retinanet,mmdetection=peers/bin/python

Peers are R50-FPN detectors on the same images, with as many boxes, three trained stages and frozen norms: torchvision's
fcos and retinanet, and mmdetection's GFL, which needs an environment of its own with the torch of its time:
  python3.11 -m venv peers
  peers/bin/pip install torch==2.1.2 torchvision==0.16.2 "numpy<2" "setuptools<70"
  peers/bin/pip install mmdet==3.3.0 mmengine==0.10.7 mmcv-lite==2.1.0 "numpy<2"
Processes take turns, one run each per round. A ratio is ours / peer within a round: median (lowest to highest).
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Median time of the parts of a training step and peak memory, on random images with random boxes: "
        "network, losses, gradient, update; not compiled, in one pass, without the gradient norm.",
        epilog=EPILOG,
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
    parser.add_argument("--threads", type=whole_number(1), help="of each process (default: torch's choice)")
    parser.add_argument("--against", metavar="PEERS", help="fcos, retinanet, mmdetection=PYTHON; separated by commas")
    parser.add_argument("--task", choices=["train", "inference"], help="what --against measures (default train)")
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
from gfl.common.text import one_line
from gfl.config import Config
from gfl.config_file import load_config
from gfl.evaluation.inference import default_device
from gfl.model.detector import normalize_images
from gfl.model.precision import autocast_dtype, memory_format
from gfl.structures import SIZE_DIVISOR, Targets
from gfl.tools.benchmark.compare import PEERS, compare, peers
from gfl.training.optim import build_optimizer


def main(args: argparse.Namespace) -> None:
    if any(side % SIZE_DIVISOR for side in args.size):
        raise UserError(f"--size must be multiples of {SIZE_DIVISOR}")
    if args.task and not args.against:
        raise UserError("--task says what --against measures; without --against the parts of a training step are timed")
    config = load_config(args.config, args.overrides)
    if args.against:
        args.task = args.task or "train"
        print_comparison(args, config)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    device = default_device()
    torch.manual_seed(config.seed)
    dtype = autocast_dtype(config.optim, device)
    layout = memory_format(config.optim, dtype)
    model = build_detector(config, args.classes).to(device, memory_format=layout).train()
    criterion = build_criterion(config, model.quality, model.box_repr)
    optimizer = build_optimizer(model, config.optim)
    images, sizes, targets = random_batch(args, device)

    def forward():
        batch = normalize_images(images, sizes).contiguous(memory_format=layout)
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


def print_comparison(args: argparse.Namespace, config: Config) -> None:
    """Ours in turn with the peers; precision and layout are the config's, for all."""
    try:
        against = peers(args.against)
    except ValueError:
        raise UserError(f"--against {one_line(args.against)}: give some of {', '.join(PEERS)}") from None
    dtype = autocast_dtype(config.optim, default_device())
    if dtype == torch.float16:
        raise UserError("--against compares in float32 or bf16, not in fp16, whose scaling the peers lack")
    amp = "none" if dtype is None else "bf16"
    settings = {name: getattr(args, name) for name in ("batch", "size", "boxes", "classes", "threads", "task")}
    settings |= {"config": os.path.abspath(args.config), "overrides": args.overrides}
    settings |= {"amp": amp, "channels_last": memory_format(config.optim, dtype) == torch.channels_last}
    size = " x ".join(map(str, [args.batch, *args.size]))
    print_line(f"{args.task}, {size}, amp {amp}, channels_last {settings['channels_last']}, {args.steps} rounds")
    for line in compare(settings, against, args.steps):
        print_line(line)


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
