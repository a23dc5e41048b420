"""The background's class losses in pieces against the elementwise definition, and what they allocate."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gfl.method import dense_loss
from gfl.method.dense_loss import background_loss
from gfl.method.losses import quality_focal_loss

BETAS = pytest.mark.parametrize("beta", [0, 0.5, 1, 2, 2.5, 4])


def random_inputs(shape=(2, 7, 5), dtype=torch.float64):
    """Logits, labels, positives and trained points; some points are neither positive nor trained."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=generator, dtype=torch.float64) * 3).to(dtype).requires_grad_()
    labels = torch.randint(shape[2], shape[:2], generator=generator)
    positive = torch.rand(shape[:2], generator=generator) < 0.3
    return logits, labels, positive, positive | (torch.rand(shape[:2], generator=generator) < 0.6)


def elementwise(logits, labels, positive, trained, *, beta):
    at_label = torch.zeros(logits.shape, dtype=torch.bool).scatter_(-1, labels.unsqueeze(-1), positive.unsqueeze(-1))
    background = trained.unsqueeze(-1) & ~at_label
    loss = quality_focal_loss(logits, torch.zeros_like(logits), beta=beta)[background].sum()
    at_label = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return loss, torch.where(positive, at_label.to(loss.dtype), 0)


def gradient(function, logits, *others, beta):
    """Of the sum and of the logits left out, with a weight for each."""
    loss, at_label = function(logits, *others, beta=beta)
    weights = torch.arange(1, at_label.numel() + 1).reshape(at_label.shape)
    return torch.autograd.grad(3 * loss + (weights * at_label).sum(), logits)[0]


@BETAS
@pytest.mark.parametrize("rows", [1, 4, 14, 100])
def test_sum_and_gradient_are_those_of_the_definition_whatever_the_pieces(monkeypatch, beta, rows):
    monkeypatch.setattr(dense_loss, "PIECE_CPU", rows * 5 // torch.get_num_threads() or 1)
    inputs = random_inputs()
    torch.testing.assert_close(background_loss(*inputs, beta=beta), elementwise(*inputs, beta=beta), rtol=1e-12, atol=0)
    found, expected = (gradient(function, *inputs, beta=beta) for function in (background_loss, elementwise))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    left_out = ~inputs[3]
    assert left_out.any()
    assert (found[left_out] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_left_out_may_be_anything(value):
    logits, labels, positive, trained = random_inputs()
    expected = background_loss(logits, labels, positive, trained, beta=2)
    logits = logits.detach().masked_fill(~trained.unsqueeze(-1), value).requires_grad_()
    found = background_loss(logits, labels, positive, trained, beta=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (torch.autograd.grad(found[0], logits)[0][~trained] == 0).all()


@BETAS
def test_the_gradient_is_the_derivative(beta):
    logits, *others = random_inputs()
    assert torch.autograd.gradcheck(lambda x: background_loss(x, *others, beta=beta), logits)
    loss, _ = background_loss(logits, *others, beta=beta)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


@BETAS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_are_finite_and_half_precision_costs_only_the_rounding_of_the_gradient(beta, dtype):
    logits, *others = random_inputs(dtype=dtype)
    logits = (logits * torch.logspace(0, 3, 5)).detach().to(dtype).requires_grad_()
    full = logits.detach().float().requires_grad_()
    loss, at_label = background_loss(logits, *others, beta=beta)
    assert loss.dtype == at_label.dtype == torch.float32
    torch.testing.assert_close((loss, at_label), elementwise(full, *others, beta=beta))
    assert loss.isfinite()
    scale = 2.0**12  # as of fp16: it acts before the gradient is rounded
    found, precise = (
        torch.autograd.grad(scale * background_loss(x, *others, beta=beta)[0], x)[0] for x in (logits, full)
    )
    assert precise.isfinite().all()
    assert found.equal(precise.to(dtype))


def test_nothing_of_the_logits_size_is_allocated_but_the_gradient(monkeypatch):
    monkeypatch.setattr(dense_loss, "PIECE_CPU", 64)
    inputs, storages = random_inputs((2, 300, 11), torch.float32), {}

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # kept, so never reused
            return result

    with Record():
        loss, _ = background_loss(*inputs, beta=2.0)
        loss.backward()
    logits = inputs[0]
    size, own = logits.untyped_storage().nbytes(), logits.untyped_storage().data_ptr()
    large = {pointer for pointer, storage in storages.items() if 2 * storage.nbytes() > size and pointer != own}
    assert large == {logits.grad.untyped_storage().data_ptr()}
