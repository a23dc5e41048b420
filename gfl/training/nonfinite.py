"""What is not finite never reaches the weights, and stops the run; ordinary steps do not wait for the device."""

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gfl.checkpoint import write_torch_file
from gfl.common import distributed
from gfl.common.errors import UserError
from gfl.structures import Batch

MOST_OVERFLOWS = 20  # under fp16, each of which halves the scaler's factor of 65,536
ADVICE = "lower optim.lr, raise optim.warmup_steps or set optim.clip_norm, then go on with --resume"


class Seen(NamedTuple):
    """A step whose outcome is on its way to the host."""

    step: int
    values: Tensor  # on the host: norm of the gradient, then the losses
    arrived: torch.cuda.Event | None
    losses: tuple[str, ...]
    batches: Sequence[Batch]


class FiniteGuard:
    """Guards the updates of one run.

    Args:
        run_dir: where the batch of a bad step is written aside.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, run_dir: Path) -> None:
        self.optimizer, self.scaler, self.run_dir = optimizer, scaler, run_dir
        self.pending: deque[Seen] = deque()
        self.overflows = 0  # gradients in a row that are not finite

    def update(self, grad_norm: Tensor, losses: dict[str, Tensor]) -> None:
        """Step of the optimizer, unless norm or losses are not finite: the fused update looks at that itself.

        Under fp16 the scaler decides, for which a gradient that overflows is an ordinary event.
        """
        if not self.scaler.is_enabled():
            finite = torch.stack([grad_norm.float(), *(loss.float() for loss in losses.values())]).isfinite().all()
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (~finite).float()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def see(self, step: int, grad_norm: Tensor, losses: dict[str, Tensor], batches: Sequence[Batch]) -> None:
        """Note the outcome of `step`, and look at those that have arrived since.

        Raises `UserError` for one with a loss or a gradient that is not finite; under fp16 not for a gradient before
        the scaler has had many tries.
        """
        values, arrived = torch.stack([grad_norm.float(), *(loss.float() for loss in losses.values())]), None
        if values.is_cuda:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self.pending.append(Seen(step, values, arrived, tuple(losses), batches))
        while self.pending and (self.pending[0].arrived is None or self.pending[0].arrived.query()):
            self._check(self.pending.popleft())

    def settle(self, model: nn.Module) -> None:
        """Wait for all steps and look at them and at the model; call it before that is saved.

        Raises `UserError` if anything is not finite.
        """
        while self.pending:
            seen = self.pending.popleft()
            if seen.arrived:
                seen.arrived.synchronize()
            self._check(seen)
        tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        norms = torch.stack(torch._foreach_norm(list(tensors.values()), torch.inf))
        if norms.isfinite().all():
            return
        wrong = [name for name, norm in zip(tensors, norms.tolist(), strict=True) if not math.isfinite(norm)]
        raise UserError(f"the weights are no longer finite ({wrong[0]}) and are not saved; {ADVICE}")

    def _check(self, seen: Seen) -> None:
        norm, *losses = seen.values.tolist()
        self.overflows = 0 if math.isfinite(norm) else self.overflows + 1
        tried = not self.scaler.is_enabled() or self.overflows >= MOST_OVERFLOWS
        if all(map(math.isfinite, losses)) and not (self.overflows and tried):
            return
        ids = [image_id for batch in seen.batches for image_id in batch.image_ids.tolist()]
        rank = f"_rank{distributed.rank()}" if distributed.world_size() > 1 else ""
        path = self.run_dir / f"not_finite_step{seen.step}{rank}.pt"
        told = dict(zip(seen.losses, losses, strict=True))
        batches = [{**batch._asdict(), "targets": batch.targets._asdict()} for batch in seen.batches]
        try:
            write_torch_file(path, {"step": seen.step, "losses": told, "gradient_norm": norm, "batches": batches})
            written = f"its batch is in {path}"
        except UserError as error:
            written = str(error)
        terms = ", ".join(f"{name} {value:.3g}" for name, value in (told | {"gradient norm": norm}).items())
        raise UserError(
            f"step {seen.step} is not finite ({terms}), on images {', '.join(map(str, ids[:16]))}"
            f"{', ...' if len(ids) > 16 else ''}; the weights did not take it, {written}; {ADVICE}"
        )


@contextlib.contextmanager
def memory_advice(shape: Sequence[int]) -> Iterator[None]:
    """Around the work on images (B, 3, H, W) of that shape: raises `UserError` with advice when memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):  # GPU, CPU
            raise
        images, _, height, width = shape
        raise UserError(
            f"out of memory with {images} images of {height} x {width} pixels per pass; raise optim.accumulate, lower "
            "optim.batch, data.short_side or data.long_side, or set optim.amp=auto; then go on with --resume"
        ) from None
