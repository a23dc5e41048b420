"""The class losses of the background: nearly all of them, in one pass over the logits.

At 365 classes, tensors of the logits' size are what a step waits for. So nothing of that size is allocated but the
gradient: the logits are read in pieces that stay in the cache, once for the sum and again for the gradient.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE_CPU = 2**16  # elements per thread: three float32 pieces fit a core's second-level cache
PIECE_GPU = 2**24  # there only memory counts, and few large kernels are best

# With AVX-512, log1p and softplus took several times as long until one call had seen -0 (torch 2.14, AMD EPYC). The
# cause is not known; perhaps a constant that is read for -0 only lies in a page that nothing else brings into memory.
torch.full((64,), -0.0, dtype=torch.float32, device="cpu").log1p_()


def background_loss(
    logits: Tensor, labels: Tensor, positive: Tensor, trained: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """What `quality_focal_loss` with a target of 0 sums to, and the logits that it leaves out.

    Args:
        logits: (B, P, C) of any precision; computed in at least float32.
        labels: (B, P) int64 in [0, C), any class where not positive.
        positive: (B, P) bool; there the label's logit is left out.
        trained: (B, P) bool; the other points are left out. All positives are trained.

    Returns the sum, a scalar, and (B, P) the logits at the labels of positives, 0 elsewhere. Gradient flows through
    both, once: a second derivative raises `RuntimeError`.
    """
    return _BackgroundLoss.apply(logits, labels, positive, trained, beta)


class _BackgroundLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, positive: Tensor, trained: Tensor, beta: float):
        ctx.save_for_backward(logits, labels, positive, trained)
        ctx.beta = beta
        sums = []
        for _, x in _background_pieces(logits, labels, positive, trained):
            score, cross_entropy = x.sigmoid(), _softplus(x)
            sums.append(score.pow_(beta).mul_(cross_entropy).sum())
        return torch.stack(sums).sum(), _at_label(logits, labels).masked_fill(~positive, 0)

    @staticmethod
    def backward(ctx, grad_sum: Tensor, grad_at_label: Tensor):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise RuntimeError("the background's loss has no second derivative")
        logits, labels, positive, trained = ctx.saved_tensors
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        rows_of_grad, labels_of_rows = grad.flatten(0, 1), labels.flatten().unsqueeze(-1)
        grad_at_label = grad_at_label.masked_fill(~positive, 0).flatten().unsqueeze(-1)
        for rows, x in _background_pieces(logits, labels, positive, trained):
            score, cross_entropy = x.sigmoid(), _softplus(x)
            # s^beta * ce with s' = s (1 - s) and ce' = s has the derivative s^beta * (beta (1 - s) ce + s)
            slope = cross_entropy.addcmul_(cross_entropy, score, value=-1).mul_(ctx.beta).add_(score)
            slope.mul_(score.pow_(ctx.beta)).mul_(grad_sum)
            rows_of_grad[rows] = slope.scatter_add_(1, labels_of_rows[rows], grad_at_label[rows])
        return grad, None, None, None, None


def _background_pieces(
    logits: Tensor, labels: Tensor, positive: Tensor, trained: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the logits as (B * P, C), copied. What is left out is -inf, where loss and gradient are exactly 0."""
    at_label = _at_label(logits, labels).masked_fill(positive, -torch.inf).flatten().unsqueeze(-1)
    left_out, labels, logits = ~trained.flatten().unsqueeze(-1), labels.flatten().unsqueeze(-1), logits.flatten(0, 1)
    for rows in _pieces(logits):
        x = logits[rows].scatter(1, labels[rows], at_label[rows].to(logits.dtype)).to(at_label.dtype)
        yield rows, x.masked_fill_(left_out[rows], -torch.inf)


def _pieces(rows: Tensor) -> list[slice]:
    """Rows in pieces; all at once for a compiler, which makes pieces of its own."""
    if torch.compiler.is_compiling():
        return [slice(None)]
    elements = PIECE_CPU * torch.get_num_threads() if rows.device.type == "cpu" else PIECE_GPU
    step = max(elements // rows.shape[1], 1)
    return [slice(start, start + step) for start in range(0, rows.shape[0], step)]


def _at_label(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, P) in at least float32."""
    at_label = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return at_label.to(torch.promote_types(logits.dtype, torch.float32))


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), the cross entropy to a target of 0. From 40 on it is x, to more digits than float64 has."""
    return F.softplus(x, threshold=40)
