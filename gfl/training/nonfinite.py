"""Stop a run at losses and gradients that are not finite, without waiting for the step that has just begun."""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gfl.checkpoint import TrainState, write_torch_file
from gfl.common import distributed
from gfl.common.errors import UserError
from gfl.structures import Batch
from gfl.training.divergence import REWIND_FACTOR, Diverged, add_loss, newest_sane_checkpoint
from gfl.training.resume import resume_option
from gfl.training.step import StepResult

MAX_OVERFLOWS = 20  # in a row under fp16, each of which halves the scaler's factor of 65,536
ADVICE = "lower optim.lr, raise optim.warmup_steps or set optim.clip_norm"


class PendingStep(NamedTuple):
    """A step whose values are being copied to the host."""

    step: int
    values: Tensor  # on the host: norm of the gradient, total loss over all processes, own losses
    arrived: torch.cuda.Event | None
    loss_names: tuple[str, ...]
    batches: Sequence[Batch]


class FiniteGuard:
    """Checks every step of a run for values that are not finite, and keeps the running loss.

    All processes find these after the same step: the gradient's norm and the total loss are the same on each.

    Args:
        run_dir: where the batch of a failed step is written, and whose checkpoints a run may go back to.
        rewind: whether it goes back by itself, if it has not yet.
    """

    def __init__(self, state: TrainState, run_dir: Path, *, rewind: bool) -> None:
        self.state, self.run_dir, self.rewind = state, run_dir, rewind
        self.pending: deque[PendingStep] = deque()
        self.overflows = 0  # gradients in a row that are not finite

    def record(self, step: int, result: StepResult) -> None:
        """Add `step` to the pending ones, and check all but those that a GPU may still be working on.

        On a GPU it waits for the step before, so that the GPU always has one to work on.

        Raises `UserError` for a loss or a gradient that is not finite, `Diverged` where the run is to go back; under
        fp16, where gradients may overflow, only for `MAX_OVERFLOWS` such gradients in a row.
        """
        losses, arrived = [loss.float() for loss in result.losses.values()], None
        total = distributed.mean_over_processes(sum(losses))
        values = torch.stack([result.grad_norm.float(), total, *losses])
        if values.is_cuda:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self.pending.append(PendingStep(step, values, arrived, tuple(result.losses), result.batches))
        while len(self.pending) > (arrived is not None):
            self._check(self.pending.popleft())

    def flush(self) -> None:
        """Wait for all pending steps and check them and the model; all processes call it before the model is saved.

        Raises `UserError` or `Diverged` if anything is not finite.
        """
        while self.pending:
            self._check(self.pending.popleft())
        state = self.state.model.state_dict()
        tensors = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        # Those of buffers differ between processes.
        norms = distributed.mean_over_processes(torch.stack(torch._foreach_norm(list(tensors.values()), torch.inf)))
        if norms.isfinite().all():
            return
        wrong = [name for name, norm in zip(tensors, norms.tolist(), strict=True) if not math.isfinite(norm)]
        raise self._divergence(f"the weights are no longer finite ({wrong[0]}) and are not saved")

    def _check(self, pending: PendingStep) -> None:
        if pending.arrived:
            pending.arrived.synchronize()
        norm, total, *losses = pending.values.tolist()
        self.overflows = 0 if math.isfinite(norm) else self.overflows + 1
        scaler_gave_up = not self.state.scaler.is_enabled() or self.overflows >= MAX_OVERFLOWS
        if math.isfinite(total) and not (self.overflows and scaler_gave_up):
            self.state.running_loss = add_loss(self.state.running_loss, total)
            return
        losses_by_name = dict(zip(pending.loss_names, losses, strict=True))
        written = self._write_batch(pending, losses_by_name, norm)
        terms = ", ".join(
            f"{name} {value:.3g}" for name, value in (losses_by_name | {"total": total, "gradient norm": norm}).items()
        )
        ids = [image_id for batch in pending.batches for image_id in batch.image_ids.tolist()]
        raise self._divergence(
            f"step {pending.step} is not finite ({terms}), on images {', '.join(map(str, ids[:16]))}"
            f"{', ...' if len(ids) > 16 else ''}; the weights were not updated with it, {written}"
        )

    def _divergence(self, problem: str) -> UserError:
        """The error to raise: to go back by itself, or with what to do."""
        loss = self.state.running_loss
        sane = newest_sane_checkpoint(self.run_dir, loss) if distributed.is_main() else None
        sane = distributed.share_from_main(sane)
        if sane and self.rewind and self.state.progress.lr_factor == 1:
            return Diverged(f"{problem}; going back to {sane} with {REWIND_FACTOR:g} of the learning rate", sane)
        start = "and start again in another run_dir" + "; no checkpoint is old enough to go back to" * self.rewind
        then = f"then continue with {resume_option(sane)}" if sane else start
        return UserError(f"{problem}; {ADVICE}, {then}", code="not_finite")

    def _write_batch(self, pending: PendingStep, losses: dict[str, float], norm: float) -> str:
        """Write the batch of a failed step for inspection; returns the part of the message about it."""
        rank = f"_rank{distributed.rank()}" if distributed.world_size() > 1 else ""
        path = self.run_dir / f"not_finite_step{pending.step}{rank}.pt"
        batches = [batch.to(torch.device("cpu")) for batch in pending.batches]
        batches = [{**batch._asdict(), "targets": batch.targets._asdict()} for batch in batches]
        content = {"step": pending.step, "losses": losses, "gradient_norm": norm, "batches": batches}
        try:
            write_torch_file(path, content)
        except UserError as error:
            return str(error)
        return f"its batch is in {path}"
