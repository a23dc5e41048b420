"""Where a run goes on, and what of a checkpoint it takes."""

import copy

import pytest
import torch
from torch import nn

from gfl.checkpoint import BEST, LAST, PREVIOUS, write_torch_file
from gfl.common import distributed
from gfl.config import OptimConfig
from gfl.training.optim import build_optimizer
from gfl.training.resume import _read_optimizer, note_launch, where_to_go_on

STATE = {"format": "gfl-1", "model": {}, "config": {}, "class_names": ["a"]}


def write(run_dir, *names):
    run_dir.mkdir(exist_ok=True)
    for name in names:
        write_torch_file(run_dir / name, STATE, proof=True)


def test_a_run_is_resumed_only_when_asked_for(tmp_path, refusal, capsys):
    run = tmp_path / "run"
    assert where_to_go_on(run, resume=False) == (None, [])
    assert capsys.readouterr().out == ""
    assert where_to_go_on(run, resume=True) == (None, [])
    assert "starting from the beginning" in capsys.readouterr().out
    write(run, BEST, PREVIOUS, LAST)
    assert "already holds a run" in refusal(where_to_go_on, run, resume=False)
    assert where_to_go_on(run, resume=True) == (run / LAST, [])
    (run / LAST).write_bytes(b"cut")
    found, problems = where_to_go_on(run, resume=True)
    assert (found, len(problems)) == (run / PREVIOUS, 1)


def test_processes_that_torchrun_starts_again_go_on_with_their_own_run_only(tmp_path, refusal, monkeypatch):
    write(tmp_path, LAST)
    monkeypatch.setattr(distributed, "launch", lambda: "id 1")
    assert "already holds a run" in refusal(where_to_go_on, tmp_path, resume=False)
    note_launch(tmp_path)
    assert where_to_go_on(tmp_path, resume=False)[0] == tmp_path / LAST
    for other in ("id 2", ""):
        monkeypatch.setattr(distributed, "launch", lambda other=other: other)
        assert "already holds a run" in refusal(where_to_go_on, tmp_path, resume=False)


def test_a_launch_is_named_by_torchrun_and_its_process(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert distributed.launch() == ""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("os.getppid", lambda: 41)
    one = distributed.launch()
    monkeypatch.setattr("os.getppid", lambda: 42)
    assert one != distributed.launch() != ""


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("before", [torch.channels_last, torch.contiguous_format])
def test_a_changed_memory_format_does_not_mix_up_the_optimizer(name, before, tmp_path):
    """Fused updates go by place in memory."""
    after = torch.contiguous_format if before == torch.channels_last else torch.channels_last
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 2).to(memory_format=before)
    config = OptimConfig(name=name, lr=0.1)
    optimizer = build_optimizer(model, config)
    gradients = torch.randn(2, *model.weight.shape)
    update(model, optimizer, gradients[0])
    saved = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(model).to(memory_format=after)
    resumed = build_optimizer(other, config)
    kept = _read_optimizer({"optimizer": saved, "config": {"optim": {"name": name}}}, tmp_path, resumed, name)
    resumed.load_state_dict({"state": kept, "param_groups": resumed.state_dict()["param_groups"]})
    update(model, optimizer, gradients[1])
    update(other, resumed, gradients[1])
    torch.testing.assert_close(other.weight, model.weight)


def update(model, optimizer, gradient):
    model.weight.grad = torch.empty_like(model.weight).copy_(gradient)
    model.bias.grad = torch.ones_like(model.bias)
    optimizer.step()
