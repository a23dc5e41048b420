"""How fast a step is: from memory and from JPEGs, eager and compiled, beside what the device can do and a peer."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat

import torch
from torch.utils.flop_counter import FlopCounterMode

from gfl.structures import Batch
from gfl.tools.gpu_check.jpegs import loaded_batches
from gfl.tools.gpu_check.report import Check, Options, attempt, judge, worst
from gfl.tools.gpu_check.step import CLASSES, Step, fast_step, random_batch

BATCH, SIZE = 16, (800, 1088)
COCO_IMAGES = 117_266 * 12  # of the 1x schedule: training images with boxes, 12 epochs
LOSS_TOLERANCE = 1e-2  # of compiled losses in bf16


def measure(step: Callable[[], object], options: Options, *, queued: int = 0) -> float:
    """Seconds per call: the median of three rounds, after calls that warm up.

    `queued` batches that wait in a loader are used up first, and a round is at least twice as long as they last.
    """
    warm, calls = (1, 1) if options.quick else (5 + queued, max(10, 2 * queued))
    for _ in range(warm):
        step()
    if options.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(options.device)
    rounds = []
    for _ in range(3):
        wait(options.device)
        start = time.perf_counter()
        for _ in range(calls):
            step()
        wait(options.device)
        rounds.append((time.perf_counter() - start) / calls)
    return statistics.median(rounds)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> str:
    """Of tensors, since the last measurement began."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.type == "cuda" else "not measured"


def setting(options: Options) -> tuple[int, tuple[int, int]]:
    """Images per step and their size."""
    return (2, (96, 128)) if options.quick else (BATCH, SIZE)


def throughput(options: Options) -> Iterator[Check]:
    """Eager steps: from device memory, from JPEGs; the device's own rate; torchvision's RetinaNet."""
    yield attempt("from device memory", partial(_from_memory, options))
    yield attempt("from JPEGs", partial(_from_jpegs, options))
    yield attempt("torchvision's RetinaNet, from device memory", partial(_retinanet, options))


def _from_memory(options: Options) -> Check:
    count, size = setting(options)
    step = fast_step(options)
    batches = repeat(random_batch(count, *size).to(options.device))
    with FlopCounterMode(display=False) as counter:
        step(batches)
    work = counter.get_total_flops()
    seconds = measure(partial(step, batches), options)
    memory = peak_memory(options.device)  # before the measurement of the matrix products
    rate, possible = work / seconds, matmul_rate(options)
    hours = COCO_IMAGES * seconds / count / 3600
    detail = (
        f"{count / seconds:.1f} images/s, {1e3 * seconds:.1f} ms per step of {count} x {size[0]} x {size[1]}, "
        f"{memory}; "
        f"{rate / 1e12:.2f} TFLOP/s, {rate / possible:.0%} of the {possible / 1e12:.2f} of a large matrix product; "
        f"COCO's 1x schedule in {hours:.1f} hours"
    )
    values = {"images_per_s": count / seconds, "flop_per_step": work, "flop_per_s": rate, "matmul_flop_per_s": possible}
    return judge("from device memory", True, detail, **values)


def matmul_rate(options: Options) -> float:
    """FLOP/s of a product of two large matrices in the precision of the step."""
    side, dtype = (256, torch.float32) if options.device.type == "cpu" else (8192, torch.bfloat16)
    factor = torch.rand(side, side, device=options.device, dtype=dtype)
    return 2 * side**3 / measure(partial(torch.mm, factor, factor), options)


def _from_jpegs(options: Options) -> Check:
    count, _ = setting(options)
    with loaded_batches(options, count) as (loaded, queued):
        alone = count / measure(partial(next, loaded(torch.device("cpu"))), options, queued=queued)
    step = fast_step(options)
    with loaded_batches(options, count) as (loaded, queued):
        seconds = measure(partial(step, loaded(options.device)), options, queued=queued)
    detail = f"{count / seconds:.1f} images/s; the loader alone {alone:.1f}"
    return judge("from JPEGs", True, detail, images_per_s=count / seconds, loader_images_per_s=alone)


def _retinanet(options: Options) -> Check:
    """Three stages of the backbone trained, frozen BatchNorm, as here."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    count, (height, width) = setting(options)
    device, name = options.device, "torchvision's RetinaNet, from device memory"
    model = retinanet_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES,
        trainable_backbone_layers=3,
        min_size=height,
        max_size=max(height, width),
    )
    model = model.to(device, memory_format=torch.channels_last).train()
    batch = random_batch(count, height, width).to(device)
    images = list(batch.images.float().div(255))
    pairs = zip(batch.targets.boxes_xyxy, batch.targets.labels, strict=True)
    targets = [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()

    seconds = measure(step, options)
    detail = f"{count / seconds:.1f} images/s, {1e3 * seconds:.1f} ms per step, {peak_memory(device)}"
    return judge(name, True, detail, images_per_s=count / seconds)


def compiled(options: Options) -> Iterator[Check]:
    """Compiled steps and CUDA graphs, against eager ones; on a CPU, where compiling takes minutes, they stay eager."""
    on_gpu = options.device.type == "cuda"
    with contextlib.nullcontext() if on_gpu else torch.compiler.set_stance("force_eager"):
        for mode in ("default", "reduce-overhead"):
            yield attempt(f"optim.compile={mode}", partial(_compiled, options, mode))
        yield attempt("graphs of many sizes", partial(_many_sizes, options))


def _compiled(options: Options, mode: str) -> Check:
    count, size = setting(options)
    batch = random_batch(count, *size).to(options.device)
    eager, fast = fast_step(options), fast_step(options, compile=mode)
    start = time.perf_counter()
    error = largest_error(eager, fast, repeat(batch))
    first_s = time.perf_counter() - start
    del eager
    seconds = measure(partial(fast, repeat(batch)), options)
    detail = f"{count / seconds:.1f} images/s, {peak_memory(options.device)}, "
    detail += f"losses within {error:.1e} of eager ones, {first_s:.0f} s to compile and compare"
    values = {"images_per_s": count / seconds, "error": error, "compile_s": first_s}
    return judge(f"optim.compile={mode}", error < LOSS_TOLERANCE, detail, **values)


def _many_sizes(options: Options) -> Check:
    """One graph is to serve all sizes: those that come later start no compiler."""
    from torch._dynamo.utils import counters

    height, width = setting(options)[1]
    sizes = [(height, width), (width, height), (height, height), (height - 32, width + 64)]
    batches = [random_batch(2, *size).to(options.device) for size in sizes]
    eager, fast = fast_step(options), fast_step(options, compile="default")
    graphs, errors = [], []
    for batch in batches:
        errors.append(largest_error(eager, fast, repeat(batch)))
        graphs.append(counters["stats"]["unique_graphs"])
    detail = (
        f"{graphs[-1] - graphs[0]} further graphs for {len(sizes) - 1} further sizes, losses within {worst(errors):.1e}"
    )
    good = graphs[-1] == graphs[0] and worst(errors) < LOSS_TOLERANCE
    return judge("graphs of many sizes", good, detail, graphs=graphs, errors=errors)


def largest_error(eager: Step, fast: Step, batches: Iterator[Batch]) -> float:
    """The largest relative difference of a loss, over two steps of each."""
    errors = []
    for _ in range(2):
        expected, found = eager(batches), fast(batches)
        errors += [
            abs(found[name].item() - loss.item()) / max(abs(loss.item()), 1e-6) for name, loss in expected.items()
        ]
    return worst(errors)
