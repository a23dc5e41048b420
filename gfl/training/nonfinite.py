"""Stop a run at losses and gradients that are not finite, without waiting for the device at each step."""

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
from gfl.training.step import StepResult

MAX_OVERFLOWS = 20  # in a row under fp16, each of which halves the scaler's factor of 65,536
ADVICE = "lower optim.lr, raise optim.warmup_steps or set optim.clip_norm, then continue with --resume"


class PendingStep(NamedTuple):
    """A step whose values are being copied to the host."""

    step: int
    values: Tensor  # on the host: norm of the gradient, then the losses
    arrived: torch.cuda.Event | None
    loss_names: tuple[str, ...]
    batches: Sequence[Batch]


class FiniteGuard:
    """Checks every step of a run for values that are not finite, as soon as these have arrived on the host.

    Args:
        run_dir: where the batch of a failed step is written.
    """

    def __init__(self, state: TrainState, run_dir: Path) -> None:
        self.state, self.run_dir = state, run_dir
        self.pending: deque[PendingStep] = deque()
        self.overflows = 0  # gradients in a row that are not finite

    def record(self, step: int, result: StepResult) -> None:
        """Add `step` to the pending ones, and check those whose values have arrived.

        Raises `UserError` for a loss or a gradient that is not finite; under fp16, where gradients may overflow, only
        for `MAX_OVERFLOWS` such gradients in a row.
        """
        losses, arrived = result.losses, None
        values = torch.stack([result.grad_norm.float(), *(loss.float() for loss in losses.values())])
        if values.is_cuda:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self.pending.append(PendingStep(step, values, arrived, tuple(losses), result.batches))
        while self.pending and (self.pending[0].arrived is None or self.pending[0].arrived.query()):
            self._check(self.pending.popleft())

    def flush(self) -> None:
        """Wait for all pending steps and check them and the model; call it before the model is saved.

        Raises `UserError` if anything is not finite.
        """
        while self.pending:
            step = self.pending.popleft()
            if step.arrived:
                step.arrived.synchronize()
            self._check(step)
        state = self.state.model.state_dict()
        tensors = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        norms = torch.stack(torch._foreach_norm(list(tensors.values()), torch.inf))
        if norms.isfinite().all():
            return
        wrong = [name for name, norm in zip(tensors, norms.tolist(), strict=True) if not math.isfinite(norm)]
        raise UserError(f"the weights are no longer finite ({wrong[0]}) and are not saved; {ADVICE}", code="not_finite")

    def _check(self, pending: PendingStep) -> None:
        norm, *losses = pending.values.tolist()
        self.overflows = 0 if math.isfinite(norm) else self.overflows + 1
        scaler_gave_up = not self.state.scaler.is_enabled() or self.overflows >= MAX_OVERFLOWS
        if all(map(math.isfinite, losses)) and not (self.overflows and scaler_gave_up):
            return
        losses_by_name = dict(zip(pending.loss_names, losses, strict=True))
        written = self._write_batch(pending, losses_by_name, norm)
        terms = ", ".join(f"{name} {value:.3g}" for name, value in (losses_by_name | {"gradient norm": norm}).items())
        ids = [image_id for batch in pending.batches for image_id in batch.image_ids.tolist()]
        raise UserError(
            f"step {pending.step} is not finite ({terms}), on images {', '.join(map(str, ids[:16]))}"
            f"{', ...' if len(ids) > 16 else ''}; the weights were not updated with it, {written}; {ADVICE}",
            code="not_finite",
        )

    def _write_batch(self, pending: PendingStep, losses: dict[str, float], norm: float) -> str:
        """Write the batch of a failed step for inspection; returns the part of the message about it."""
        rank = f"_rank{distributed.rank()}" if distributed.world_size() > 1 else ""
        path = self.run_dir / f"not_finite_step{pending.step}{rank}.pt"
        batches = [{**batch._asdict(), "targets": batch.targets._asdict()} for batch in pending.batches]
        content = {"step": pending.step, "losses": losses, "gradient_norm": norm, "batches": batches}
        try:
            write_torch_file(path, content)
        except UserError as error:
            return str(error)
        return f"its batch is in {path}"
