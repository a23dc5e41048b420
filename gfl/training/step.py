"""One training step: `accumulate` passes forward and backward, then one update of the weights."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gfl.checkpoint import TrainState
from gfl.common.errors import UserError
from gfl.config import OptimConfig
from gfl.method.criterion import Criterion
from gfl.model.detector import normalize_images
from gfl.model.precision import autocast_dtype, memory_format
from gfl.structures import Batch
from gfl.training.acceleration import accelerated
from gfl.training.accumulation import step_normalisers
from gfl.training.optim import set_learning_rate


class StepResult(NamedTuple):
    """What came out of a step; tensors stay on the device, so that nothing waits for it."""

    losses: dict[str, Tensor]  # weighted, sums over the passes
    grad_norm: Tensor  # before clipping
    batches: Sequence[Batch]  # what it was computed on


def train_step(
    state: TrainState,
    parallel: nn.Module,
    criterion: Criterion,
    batches: Iterator[Batch],
    optim: OptimConfig,
    rate: float,
) -> StepResult:
    """One update of the weights of `state` from the next `optim.accumulate` batches.

    Args:
        parallel: `state.model`, or what wraps it for many processes.
        rate: learning rate.

    Raises `UserError` with advice when memory runs out.
    """
    device = next(state.model.parameters()).device
    set_learning_rate(state.optimizer, rate)
    state.optimizer.zero_grad(set_to_none=True)
    passes, used = [], list(islice(batches, optim.accumulate))
    normalisers = step_normalisers(criterion, used, state.model.head.layout, device) if len(used) > 1 else [None]
    for number, (batch, step) in enumerate(zip(used, normalisers, strict=True), 1):
        last = number == len(used)
        # Gradients are averaged over the processes once, in the last pass.
        sync = contextlib.nullcontext() if last or parallel is state.model else parallel.no_sync()
        with advise_on_memory(batch.images.shape), sync:
            losses = accelerated(compute_losses, optim, device)(parallel, criterion, batch.to(device), optim, step)
            state.scaler.scale(sum(losses.values())).backward()
        passes.append({name: loss.detach() for name, loss in losses.items()})
    losses = {name: sum(losses[name] for losses in passes) for name in passes[0]}
    state.scaler.unscale_(state.optimizer)
    trained = [parameter for parameter in state.model.parameters() if parameter.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained])
    if optim.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(trained, optim.clip_norm, grad_norm)
    update_weights(state, grad_norm, losses)
    if state.average:
        state.average.update()
    return StepResult(losses, grad_norm, used)


def compute_losses(
    model: nn.Module,
    criterion: Criterion,
    batch: Batch,
    optim: OptimConfig,
    step: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Batch on the device -> weighted losses, in float32 whatever the autocast; `step` as in `Criterion.forward`."""
    device, dtype = batch.images.device, autocast_dtype(optim, batch.images.device)
    images = normalize_images(batch.images, batch.image_sizes).contiguous(memory_format=memory_format(optim, dtype))
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        output = model(images)
    return criterion(output, batch.targets, batch.image_sizes, step, images)


def update_weights(state: TrainState, grad_norm: Tensor, losses: dict[str, Tensor]) -> None:
    """Step of the optimizer, which leaves the weights alone where the norm or a loss is not finite.

    The fused update decides that on the device. Under fp16 the scaler does, for which a gradient that overflows is an
    ordinary event.
    """
    if not state.scaler.is_enabled():
        finite = torch.stack([grad_norm.float(), *(loss.float() for loss in losses.values())]).isfinite().all()
        state.optimizer.grad_scale, state.optimizer.found_inf = None, (~finite).float()
    state.scaler.step(state.optimizer)
    state.scaler.update()


@contextlib.contextmanager
def advise_on_memory(shape: Sequence[int]) -> Iterator[None]:
    """Around the work on images (B, 3, H, W) of that shape: raises `UserError` with advice when memory runs out."""
    try:
        yield
    except RuntimeError as error:
        # A GPU's has a type of its own, a CPU's only its text.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        images, _, height, width = shape
        raise UserError(
            f"out of memory with {images} images of {height} x {width} pixels per pass; raise optim.accumulate, lower "
            "optim.batch, data.short_side or data.long_side, or set optim.amp=auto; then continue with --resume",
            code="out_of_memory",
        ) from None
