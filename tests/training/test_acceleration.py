"""When losses are compiled, and what becomes of them; tests/robustness/test_compiled_steps.py compiles some."""

import functools

import pytest
import torch

from gfl.common.errors import UserError
from gfl.config import OptimConfig
from gfl.structures import Batch, Targets
from gfl.training import acceleration
from gfl.training.acceleration import accelerated, compile_problem, set_up_backends
from gfl.training.step import compute_losses

CPU = torch.device("cpu")
TARGETS = Targets(torch.zeros(1, 2, 4), torch.zeros(1, 2).long(), torch.ones(1, 2).bool())
BATCH = Batch(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]]), TARGETS, torch.tensor([1]), torch.tensor([[64, 96]]))


def test_without_a_compiler_it_trains_as_it_is(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("\nno compiler: details\nmore")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(acceleration, "compile_problem", functools.cache(compile_problem.__wrapped__))
    assert acceleration.compile_problem(CPU) == "no compiler: details"
    assert accelerated.__wrapped__(compute_losses, OptimConfig(compile="default"), CPU) is compute_losses


def test_cuda_graphs_with_several_passes_are_refused():
    """The gradients of the first pass would be overwritten by the second."""
    with pytest.raises(UserError) as error:
        set_up_backends(OptimConfig(compile="reduce-overhead", accumulate=2))
    assert error.value.code == "cuda_graphs"


def test_what_a_cuda_graph_returns_outlives_its_next_replay(monkeypatch):
    """A replay writes its losses where those of the one before were."""
    memory = {"cls": torch.zeros(())}

    def replay(model, criterion, batch, optim, step):
        memory["cls"] += 1
        return memory

    monkeypatch.setattr(torch, "compile", lambda *_, **__: replay)
    monkeypatch.setattr(acceleration, "compile_problem", lambda device: "")
    call = accelerated.__wrapped__(compute_losses, OptimConfig(compile="reduce-overhead"), CPU)
    first, second = (call(None, None, BATCH, None)["cls"] for _ in range(2))
    assert (first.item(), second.item()) == (1, 2)
