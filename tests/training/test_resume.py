"""Resume: which checkpoint is used, what is restored, and what is refused before anything is changed."""

import copy

import pytest
import torch
from tiny_run import BAD_IMAGES, CLASS_NAMES, CONFIG, DIGESTS, PROGRESS, RUNNING_LOSS, new_state, save, train
from torch import nn

from gfl.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    RunningLoss,
    TrainState,
    detector_content,
    read_checkpoint,
    save_checkpoint,
    write_torch_file,
)
from gfl.common import distributed
from gfl.config import OptimConfig
from gfl.config_file import config_from_dict, config_to_dict
from gfl.model.average import WeightAverage
from gfl.training.optim import build_optimizer
from gfl.training.resume import NOT_IN_EARLIER_VERSIONS, find_resume_checkpoint, restore, write_launch_id
from gfl.training.saved_optimizer import read_optimizer

# --- which checkpoint -------------------------------------------------------------------------------------------------


def test_a_run_is_resumed_only_on_request(tmp_path, capsys, refusal):
    run = tmp_path / "run"
    assert find_resume_checkpoint(run, "") == (None, [])
    assert capsys.readouterr().out == ""
    assert find_resume_checkpoint(run, "newest") == (None, [])
    assert str(run) in capsys.readouterr().out
    run.mkdir()
    for name in (BEST, PREVIOUS, LAST):
        save(run / name)
    assert refusal(find_resume_checkpoint, run, "").code == "run_exists"
    assert find_resume_checkpoint(run, "newest") == (run / LAST, [])
    assert find_resume_checkpoint(run, "previous") == (run / PREVIOUS, [])
    assert find_resume_checkpoint(run, str(run / BEST)) == (run / BEST, [])
    (run / BEST).unlink()
    assert refusal(find_resume_checkpoint, run, "best").code == "missing"
    assert refusal(find_resume_checkpoint, tmp_path / "other", str(run)).code == "missing"
    (run / LAST).write_bytes(b"cut")
    found, problems = find_resume_checkpoint(run, "newest")
    assert (found, len(problems)) == (run / PREVIOUS, 1)


def test_processes_that_torchrun_restarts_resume_only_their_own_run(tmp_path, monkeypatch, refusal):
    save(tmp_path / LAST)
    monkeypatch.setattr(distributed, "launch_id", lambda: "id 1")
    assert refusal(find_resume_checkpoint, tmp_path, "").code == "run_exists"
    write_launch_id(tmp_path)
    for resume in ("", "newest", "previous"):  # which it did before it was restarted
        assert find_resume_checkpoint(tmp_path, resume)[0] == tmp_path / LAST
    for other in ("id 2", ""):
        monkeypatch.setattr(distributed, "launch_id", lambda other=other: other)
        assert refusal(find_resume_checkpoint, tmp_path, "").code == "run_exists"


# --- what is restored -------------------------------------------------------------------------------------------------


EXPECTED = {"class_names": CLASS_NAMES, "digests": DIGESTS, "steps_per_epoch": PROGRESS.steps_per_epoch}


def resume(path, state=None, config=CONFIG, **others):
    state = state or new_state()
    return state, restore(state, path, config=config, **EXPECTED | others)


def test_a_resumed_run_continues_as_if_never_interrupted(tmp_path):
    uninterrupted = train(new_state(), 7)
    other = train(new_state(), 1)  # another state, which must be replaced
    state, changes = resume(save(tmp_path / LAST, steps=3), other)
    assert changes == {}
    assert (state.progress, state.running_loss, state.bad_images) == (PROGRESS, RUNNING_LOSS, BAD_IMAGES)
    assert state.scaler.get_scale() == 128
    train(state, 4)
    assert state.scaler.get_scale() == uninterrupted.scaler.get_scale()
    for name, tensor in uninterrupted.model.state_dict().items():
        assert torch.equal(state.model.state_dict()[name], tensor), name


def test_changes_of_the_config_are_returned(tmp_path):
    changed = config_from_dict(config_to_dict(CONFIG) | {"seed": 9}, "test")
    assert resume(save(tmp_path / LAST), config=changed)[1] == {"seed": (0, 9)}


def test_another_teacher_is_returned(tmp_path):
    path = save(tmp_path / LAST, digests=DIGESTS | {"teacher": "0" * 64})
    for now, named in (({"teacher": "1" * 64}, True), ({"teacher": "0" * 64}, False), ({}, False)):
        changes = resume(path, digests=DIGESTS | now)[1]
        assert any("loss.distill.teacher" in name for name in changes) == named


def test_other_data_and_another_number_of_processes_are_returned(tmp_path, monkeypatch):
    path = save(tmp_path / LAST)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    _, changes = resume(path, digests=DIGESTS | {"val": "other"})
    assert changes.pop("processes") == (1, 2)
    (name,) = changes
    assert "data.val" in name


def test_the_running_loss_begins_again_where_the_loss_is_another(tmp_path):
    path = save(tmp_path / LAST)
    for section, kept in (({"seed": 9}, True), ({"loss": {"cls_weight": 3.0}}, False)):
        state, _ = resume(path, config=config_from_dict(config_to_dict(CONFIG) | section, "test"))
        assert (state.running_loss == RUNNING_LOSS) is kept


def test_a_checkpoint_of_an_earlier_version_is_resumed(altered):
    def strip(state):
        for part in ("running_loss", "bad_images", "digests", "processes"):
            del state[part]
        del state["progress"]["lr_factor"]

    state, changes = resume(altered(strip))
    assert (changes, state.progress, state.running_loss, state.bad_images) == ({}, PROGRESS, RunningLoss(), {})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("before", [torch.channels_last, torch.contiguous_format])
def test_the_optimizer_state_follows_a_changed_memory_format(name, before, tmp_path):
    """Fused updates pair weights and state by their position in memory."""
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
    state = read_optimizer({"optimizer": saved}, tmp_path, resumed, {})
    resumed.load_state_dict({"state": state, "param_groups": resumed.state_dict()["param_groups"]})
    update(model, optimizer, gradients[1])
    update(other, resumed, gradients[1])
    torch.testing.assert_close(other.weight, model.weight)


def update(model, optimizer, gradient):
    model.weight.grad = torch.empty_like(model.weight).copy_(gradient)
    model.bias.grad = torch.ones_like(model.bias)
    optimizer.step()


def with_average(state):
    state.average, state.progress = WeightAverage(state.model, 0.9), PROGRESS
    return state


def test_an_average_of_the_weights_is_saved_as_the_model_and_continues_to_the_bit(tmp_path):
    uninterrupted = train(with_average(new_state()), 7)
    save_checkpoint(tmp_path / LAST, train(with_average(new_state()), 3), CONFIG, CLASS_NAMES, DIGESTS)
    state = train(resume(tmp_path / LAST, train(with_average(new_state()), 1))[0], 4)
    assert state.average.updates == 7
    for one, other in ((state.model, uninterrupted.model), (state.detector, uninterrupted.detector)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert not torch.equal(state.model[0].weight, state.detector[0].weight)
    assert torch.equal(read_checkpoint(tmp_path / LAST)["model"]["0.weight"], with_three_steps()[0].weight)


def test_a_run_may_begin_and_stop_to_average(tmp_path):
    state, _ = resume(save(tmp_path / LAST), with_average(new_state()))
    assert state.average.updates == 0
    assert torch.equal(state.detector[0].weight, state.model[0].weight)
    averaged = train(with_average(new_state()), 3)
    save_checkpoint(tmp_path / LAST, averaged, CONFIG, CLASS_NAMES, DIGESTS)
    state, _ = resume(tmp_path / LAST)
    assert torch.equal(state.model[0].weight, averaged.model[0].weight)


def with_three_steps():
    return train(with_average(new_state()), 3).detector


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_run_is_refused_and_changes_nothing(tmp_path, refusal):
    path = save(tmp_path / LAST, steps=3)
    sgd = config_from_dict(config_to_dict(CONFIG) | {"optim": {"name": "sgd"}}, "test")
    wider = new_state()
    wider.model = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Linear(9, 1))
    two_groups = new_state()
    two_groups.optimizer = torch.optim.AdamW([{"params": [p]} for p in two_groups.model.parameters()])
    for arguments, code in [
        ({"class_names": ("disc",)}, "other_classes"),
        ({"class_names": CLASS_NAMES[::-1]}, "other_classes"),
        ({"steps_per_epoch": 6}, "other_data"),
        ({"config": sgd}, "other_optimizer"),
        ({"state": two_groups}, "other_optimizer"),
        ({"state": wider}, "other_model"),
    ]:
        arguments = {"state": new_state()} | arguments
        before = copy.deepcopy(arguments["state"].model.state_dict())
        assert refusal(resume, path, **arguments).code == code
        torch.testing.assert_close(arguments["state"].model.state_dict(), before)


def with_changes(**sections):
    tree = config_to_dict(CONFIG)
    return config_from_dict(tree | {name: tree[name] | change for name, change in sections.items()}, "test")


def test_outputs_of_another_meaning_are_refused_although_the_tensors_fit(tmp_path, refusal):
    config = with_changes(model=config_to_dict(CONFIG)["model"] | {"head": {"quality": "none"}})
    message = refusal(resume, save(tmp_path / LAST), config=config)
    assert message.code == "other_model"
    assert "model.head.quality: joint -> none" in message


def test_how_a_new_run_would_begin_may_differ(tmp_path):
    head = config_to_dict(CONFIG)["model"]["head"]
    head |= {"initial_distance": 8.0, "dgqp": head["dgqp"] | {"init": "kaiming"}}
    config = with_changes(model=config_to_dict(CONFIG)["model"] | {"head": head})
    _, changes = resume(save(tmp_path / LAST), config=config)
    assert changes.keys() == {"model.head.initial_distance", "model.head.dgqp.init"}


def test_a_run_of_a_version_without_some_keys_is_continued_with_their_defaults(tmp_path):
    saved = torch.load(save(tmp_path / LAST), weights_only=True)
    del saved["config"]["model"]["head"]["initial_distance"], saved["config"]["loss"]["distill"]
    write_torch_file(tmp_path / "earlier.pt", saved)
    assert resume(tmp_path / "earlier.pt")[1] == {}


@pytest.mark.parametrize(
    ("head", "advised"),
    [({"delta": 0.5}, True), ({"delta": 2.0}, False), ({"delta": 0.5, "quality": "none"}, False)],
    ids=str,
)
def test_a_new_run_from_its_weights_is_advised_where_only_bins_differ_that_can_be_resampled(
    head, advised, tmp_path, refusal
):
    model = config_to_dict(CONFIG)["model"]
    message = refusal(resume, save(tmp_path / LAST), config=with_changes(model=model | {"head": model["head"] | head}))
    assert message.code == "other_model"
    assert ("model.weights=" in message) == advised


def test_a_run_whose_checkpoints_are_gone_is_neither_overwritten_nor_new(tmp_path, refusal):
    for name in (LAST, PREVIOUS):
        save(tmp_path / name)
    (tmp_path / LAST).unlink()
    path, problems = find_resume_checkpoint(tmp_path, "newest")
    assert path == tmp_path / PREVIOUS
    assert str(tmp_path / LAST) in problems[0]
    (tmp_path / PREVIOUS).unlink()
    assert refusal(find_resume_checkpoint, tmp_path, "").code == "run_exists"
    assert refusal(find_resume_checkpoint, tmp_path, "newest").code == "damaged"


def test_another_head_is_named_with_its_keys_and_tensors(tmp_path, refusal):
    other = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1), nn.Linear(1, 1))
    state = TrainState(other, torch.optim.AdamW(other.parameters()), torch.amp.GradScaler("cpu"))
    config = with_changes(model=config_to_dict(CONFIG)["model"] | {"head": {"quality": "dgqp"}})
    message = refusal(resume, save(tmp_path / LAST), state=state, config=config)
    assert message.code == "other_model"
    for part in ("3.weight", "model.head.quality: joint -> dgqp"):
        assert part in message


def test_the_key_that_makes_it_another_optimizer_is_named(tmp_path, refusal):
    message = refusal(resume, save(tmp_path / LAST), config=with_changes(optim={"name": "sgd"}))
    assert message.code == "other_optimizer"
    assert "optim.name: adamw -> sgd" in message


@pytest.mark.parametrize(("epoch", "step", "refused"), [(3, 0, True), (2, 1, True), (2, 0, False), (1, 5, False)])
def test_fewer_epochs_than_are_done_are_refused(epoch, step, refused, tmp_path, refusal):
    path = save(tmp_path / LAST, progress=PROGRESS._replace(epoch=epoch, step=step))
    config = with_changes(optim={"epochs": 2})
    if refused:
        assert refusal(resume, path, config=config).code == "fewer_epochs"
    else:
        assert resume(path, config=config)[0].progress.epoch == epoch


def test_converted_weights_are_refused(tmp_path, refusal):
    write_torch_file(tmp_path / LAST, detector_content(new_state().model.state_dict(), CONFIG, CLASS_NAMES))
    assert refusal(resume, tmp_path / LAST).code == "weights_only"


@pytest.fixture
def altered(tmp_path):
    """Write a checkpoint with `change` made to its content."""
    content = read_checkpoint(save(tmp_path / "good.pt"))

    def write(change):
        state = copy.deepcopy(content)
        change(state)
        write_torch_file(tmp_path / LAST, state)
        return tmp_path / LAST

    return write


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("progress", {"epoch": -1}),
        ("progress", {"epoch": 1.5}),
        ("progress", {"best": float("nan")}),
        ("progress", {"step": 6}),
        ("progress", {"more": 1}),
        ("optimizer", {"state": []}),
        ("optimizer", {"param_groups": None}),
        ("optimizer", {"state": {999: {}}}),
        ("optimizer", {"state": {0: {"step": torch.tensor(1.0)}}}),
        ("scaler", {"scale": float("nan")}),
        ("scaler", {"scale": 0}),
        ("scaler", {"growth_interval": "often"}),
        ("progress", {"lr_factor": 0}),
        ("running_loss", {"mean": float("nan")}),
        ("running_loss", {"steps": -1}),
        ("bad_images", {"a.png": 3}),
        ("digests", {"train": None}),
    ],
)
def test_a_damaged_part_is_named(altered, refusal, part, change):
    message = refusal(resume, altered(lambda state: state[part].update(change)))
    assert LAST in message
    assert part in message


@pytest.mark.parametrize("part", ["progress", "optimizer", "scaler"])
def test_a_part_with_a_missing_key_is_named(altered, refusal, part, tmp_path):
    for key in read_checkpoint(tmp_path / "good.pt")[part].keys() - NOT_IN_EARLIER_VERSIONS:
        assert part in refusal(resume, altered(lambda state, key=key: state[part].pop(key)))


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("value", [torch.zeros(3, 3), torch.tensor(float("nan")), None, 1.0], ids=str)
def test_optimizer_state_that_does_not_fit_its_parameter_is_refused(altered, key, value, refusal):
    path = altered(lambda state: state["optimizer"]["state"][0].update({key: value}))
    assert refusal(resume, path).code == "damaged"


def test_a_negative_square_in_the_optimizer_state_is_refused(altered, refusal):
    path = altered(lambda state: state["optimizer"]["state"][0]["exp_avg_sq"].neg_())
    assert refusal(resume, path).code == "damaged"
