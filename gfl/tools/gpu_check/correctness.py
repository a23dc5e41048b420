"""Results on the device: golden values, the CPU's results, and runs that repeat and resume to the bit."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path

import torch

from gfl.build import ASSIGNERS, build_assigner
from gfl.checkpoint import TrainState, save_checkpoint
from gfl.common.errors import UserError
from gfl.config import AssignConfig, HeadConfig
from gfl.evaluation.inference import detect
from gfl.method.points import PointLayout, make_point_grid, points_in_images
from gfl.structures import Batch, PointGrid, PointPredictions
from gfl.tools.gpu_check.report import NOT_RUN, Check, Options, attempt, judge, worst
from gfl.tools.gpu_check.step import CLASSES, Step, make_config, random_batch
from gfl.training.resume import restore
from gfl.training.step import compute_losses, train_step

TESTS = Path(__file__).resolve().parents[3] / "tests"
DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# The largest error of an output relative to the largest value, over the layers of a whole network.
TOLERANCES = {"float32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
FIRST_LOSS_TOLERANCE = 1e-2


def exact() -> None:
    """Float32 with all its bits, and algorithms that repeat."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def golden(options: Options) -> Iterator[Check]:
    """The outputs of mmdetection's models, which tests/golden/ holds."""
    exact()
    if not (TESTS / "golden").is_dir():
        yield Check("golden models", NOT_RUN, "tests/golden is in a checkout only")
        return
    sys.path.insert(0, str(TESTS))
    from reference import GOLDEN, deviation_from_golden

    names = sorted(path.stem for path in GOLDEN.glob("model_*.json"))
    for name in [name for name in names if "r18" in name] if options.quick else names:
        for precision, dtype in DTYPES.items():
            check = partial(_golden, name, precision, partial(deviation_from_golden, name, options.device, dtype))
            yield attempt(f"{name}, {precision}", check)


def _golden(name: str, precision: str, deviation: Callable[[], float]) -> Check:
    found, limit = deviation(), TOLERANCES[precision]
    detail = f"largest error {found:.1e} of the largest value (limit {limit:.0e})"
    return judge(f"{name}, {precision}", found < limit, detail, deviation=found)


def same_as_cpu(options: Options) -> Iterator[Check]:
    """Assignments, losses and detections of random boxes, on the device and on the CPU."""
    exact()
    size = (320, 416) if options.quick else (800, 1088)
    batch = random_batch(4, *size, boxes=20)
    for name in ASSIGNERS:
        yield attempt(f"assignment by {name}", partial(_same_assignment, name, batch, options.device))
    yield attempt("first losses", partial(_same_losses, batch, options))
    yield attempt("detections", partial(_same_detections, batch, options))


def _same_assignment(name: str, batch: Batch, device: torch.device) -> Check:
    assigner, found = build_assigner(AssignConfig(kind=name), HeadConfig()), []
    height, width = batch.images.shape[-2:]
    layout = PointLayout((8, 16, 32, 64, 128))
    feature_sizes = [(-(-height // s), -(-width // s)) for s in layout.strides]
    predicted = _random_predictions(len(batch.images), make_point_grid(feature_sizes, layout))
    for place in (torch.device("cpu"), device):
        grid, moved = make_point_grid(feature_sizes, layout, device=place), batch.to(place)
        predict = partial(PointPredictions, *(tensor.to(place) for tensor in predicted))
        inside = points_in_images(grid, moved.image_sizes)
        found.append(assigner(grid, moved.targets, inside, predict).index.cpu())
    differ = int((found[0] != found[1]).sum())
    positive = int((found[0] >= 0).sum())
    return judge(
        f"assignment by {name}", differ == 0, f"{differ} of {found[0].numel()} points differ, {positive} positive"
    )


def _random_predictions(images: int, grid: PointGrid) -> PointPredictions:
    """Squares of up to 16 strides around the points, with random scores; the same whenever it is called."""
    generator, shape = torch.Generator().manual_seed(1), (images, len(grid.points))
    half = grid.strides[:, None] * 8 * torch.rand(*shape, 1, generator=generator)
    boxes_xyxy = torch.cat([grid.points - half, grid.points + half], dim=-1)
    return PointPredictions(torch.rand(*shape, CLASSES, generator=generator), boxes_xyxy)


def _same_losses(batch: Batch, options: Options) -> Check:
    """First-step losses, on the CPU in float32 and on the device in each precision."""
    losses = {}
    for label, place, amp in (
        ("CPU", "cpu", "none"),
        ("float32", options.device, "none"),
        ("bf16", options.device, "bf16"),
        ("fp16", options.device, "fp16"),
    ):
        step = Step(make_config(options, small=True, amp=amp), torch.device(place))
        with torch.no_grad():
            found = compute_losses(step.model, step.criterion, batch.to(step.device), step.config.optim)
        losses[label] = {name: loss.item() for name, loss in found.items()}
    errors = {
        label: worst(abs(loss - losses["CPU"][name]) / abs(losses["CPU"][name]) for name, loss in found.items())
        for label, found in losses.items()
    }
    detail = ", ".join(f"{label} {error:.1e}" for label, error in errors.items() if label != "CPU")
    detail += f" off those of the CPU (limit {FIRST_LOSS_TOLERANCE:g})"
    return judge("first losses", worst(errors.values()) < FIRST_LOSS_TOLERANCE, detail, losses=losses)


def _same_detections(batch: Batch, options: Options) -> Check:
    config, found = make_config(options, small=True), []
    for place in (torch.device("cpu"), options.device):
        step = Step(config, place)
        step.model.eval()
        for parameter in (step.model.head.cls_out.weight, step.model.head.reg_out.weight):
            parameter.data.mul_(30)  # scores that differ from place to place
        with torch.inference_mode():
            found.append(detect(step.model, batch.to(place), config.eval)[0])
    scores, others = (detections.scores.cpu() for detections in found)
    error, count = (scores - others).abs().max().item(), int((scores > 0).sum())
    return judge("detections", error < 1e-3, f"{count} scores, which differ by at most {error:.1e}", error=error)


def resume(options: Options) -> Iterator[Check]:
    """Runs that are repeated, and runs that are saved and restored on their way."""
    exact()
    precisions = {"float32": "none", "bf16": "bf16", "fp16": "fp16"}
    if options.device.type == "cpu":
        del precisions["fp16"]  # which is slow there
    for precision, amp in precisions.items():
        yield attempt(f"resume, {precision}", partial(_resume, options, precision, amp))


def _resume(options: Options, precision: str, amp: str, steps: int = 6) -> Check:
    config = make_config(options, small=True, amp=amp)
    batch = random_batch(2, 160, 192, boxes=4)
    digests, names = {"train": "0" * 64, "val": "0" * 64}, tuple(map(str, range(80)))
    path = options.folder / f"resume_{amp}.pt"

    def train(state: TrainState, step: Step, first: int, last: int) -> None:
        for number in range(first, last):
            torch.manual_seed(number)
            train_step(state, step.model, step.criterion, repeat(batch), config.optim, 0.01)

    whole = [Step(config, options.device) for _ in range(2)]
    for step in whole:
        train(step.state, step, 0, steps)
    half, rest = Step(config, options.device), Step(config, options.device, seed=1)
    train(half.state, half, 0, steps // 2)
    save_checkpoint(path, half.state, config, names, digests)
    restore(rest.state, path, config=config, class_names=names, digests=digests, steps_per_epoch=0)
    train(rest.state, rest, steps // 2, steps)
    weights = [step.model.state_dict() for step in (*whole, rest)]
    repeated, resumed = (all(weights[0][name].equal(other[name]) for name in other) for other in weights[1:])
    if not all(tensor.isfinite().all() for tensor in weights[0].values()):
        raise UserError("the weights are not finite")
    detail = (
        f"repeated {'equal' if repeated else 'NOT equal'} to the bit, resumed {'equal' if resumed else 'NOT equal'}"
    )
    return judge(f"resume, {precision}", repeated and resumed, detail)
