"""Checkpoints: complete, never half-written, and nothing that is read is executed."""

import errno
import io
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from gfl.build import build_detector
from gfl.checkpoint import (
    FORMAT,
    TRAINING,
    WEIGHTS,
    Progress,
    find_checkpoint,
    load_detector,
    load_model_state,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from gfl.config import config_from_dict, config_to_dict

SMALL = config_from_dict(
    {
        "model": {
            "backbone": {"name": "resnet18", "weights": "none", "frozen_stages": -1},
            "fpn": {"channels": 32},
            "head": {"channels": 64, "num_convs": 1},
        },
        "optim": {"lr": 0.003},
    },
    "test",
)
INPUTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


class Run:
    """A model in training, with everything that a checkpoint holds."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.scaler.scale(self.model(INPUTS).square().mean()).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return self

    def save(self, path, progress=Progress(2, 5, 0.25), keep=None):  # noqa: B008 (immutable)
        save_checkpoint(
            path,
            model=self.model,
            config=SMALL,
            class_names=("disc", "ring"),
            progress=progress,
            optimizer=self.optimizer,
            scaler=self.scaler,
            keep=keep,
        )
        return path


def test_a_run_goes_on_from_its_checkpoint_as_if_never_stopped(tmp_path):
    whole = Run().train(7)
    state = read_checkpoint(Run().train(3).save(tmp_path / "last.pt"))
    resumed = Run().train(1)  # another state, which must be replaced
    load_model_state(resumed.model, state, tmp_path / "last.pt")
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed.scaler.load_state_dict(state["scaler"])
    assert resumed.scaler.get_scale() == 128
    resumed.train(4)
    assert resumed.scaler.get_scale() == whole.scaler.get_scale()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_a_checkpoint_says_what_it_is_of(tmp_path):
    state = read_checkpoint(Run().save(tmp_path / "last.pt"))
    assert config_from_dict(state["config"], "test") == SMALL
    assert state["class_names"] == ["disc", "ring"]
    assert Progress(**state["progress"]) == Progress(epoch=2, step=5, best=0.25)
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "last.pt.json"]


def test_a_checkpoint_can_be_replaced_while_it_is_read(tmp_path):
    path = Run().save(tmp_path / "last.pt")
    state = read_checkpoint(path)
    before = {name: tensor.clone() for name, tensor in state["model"].items()}
    Run().train(3).save(path)
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in before.items())
    assert not torch.equal(read_checkpoint(path)["model"]["0.weight"], before["0.weight"])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed\nwriting file"),
    ],
)
def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch, refusal, error):
    path = Run().save(tmp_path / "last.pt")
    before = path.read_bytes()

    def fail(state, file):
        file.write(b"half")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fail)
        message = refusal(Run().train(1).save, path)
    assert message.startswith(f"cannot write {path}: ")
    assert "--resume" in message
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "last.pt.json"]


def test_a_write_that_is_interrupted_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = Run().save(tmp_path / "last.pt")
    before = path.read_bytes()

    def interrupt(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Run().save(path)
    assert path.read_bytes() == before
    Run().train(1).save(path)  # what the interrupted one left behind is in nobody's way
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "last.pt.json"]


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "told"), [(cut_off, "bytes, but"), (alter, "not as it was written")])
def test_a_file_that_changed_after_it_was_written_is_refused(damage, told, tmp_path, refusal):
    path = Run().save(tmp_path / "last.pt")
    damage(path)
    message = refusal(read_checkpoint, path)
    assert message.startswith(str(path))
    assert told in message


@pytest.mark.parametrize("proof", [None, "", "7", '{"bytes": 3}'])
def test_without_a_readable_proof_a_file_is_taken_as_it_is(proof, tmp_path):
    path = Run().save(tmp_path / "last.pt")
    (tmp_path / "last.pt.json").unlink()
    if proof is not None:
        (tmp_path / "last.pt.json").write_text(proof)
    assert read_checkpoint(path)["class_names"]


def test_of_a_run_the_newest_checkpoint_that_can_be_read_is_taken_and_the_others_are_told(tmp_path, refusal):
    assert newest_checkpoint(tmp_path) == (None, [])
    for steps, name in ((1, "best.pt"), (2, "last.pt"), (3, "last.pt")):
        Run().train(steps).save(tmp_path / name, Progress(steps, 0), keep=tmp_path / "previous.pt")
    for name, epoch in (("last.pt", 3), ("previous.pt", 2), ("best.pt", 1)):
        found, problems = newest_checkpoint(tmp_path)
        assert found == tmp_path / name
        assert read_checkpoint(found)["progress"]["epoch"] == epoch
        assert len(problems) == 3 - epoch
        cut_off(found)
    assert "previous.pt" in refusal(newest_checkpoint, tmp_path)


def test_killed_anywhere_while_saving_there_is_a_whole_checkpoint(tmp_path, monkeypatch):
    """Every call that changes the folder is in its turn the last one that happens."""
    calls = [(os, "replace"), (type(tmp_path), "unlink"), (type(tmp_path), "write_text"), (torch, "save")]
    for last in range(12):
        folder = tmp_path / str(last)
        folder.mkdir()
        for epoch in (1, 2):
            Run().save(folder / "last.pt", Progress(epoch, 0), keep=folder / "previous.pt")
        left = [last]
        with monkeypatch.context() as patched:
            for owner, name in calls:
                patched.setattr(owner, name, _dies(getattr(owner, name), left))
            try:
                Run().save(folder / "last.pt", Progress(3, 0), keep=folder / "previous.pt")
                finished = True
            except SystemExit:
                finished = False
        found, problems = newest_checkpoint(folder)
        assert read_checkpoint(found)["progress"]["epoch"] >= 2, last
        assert not problems, last
    assert finished


def _dies(function, left):
    def call(*args, **kwargs):
        if left[0] == 0:
            raise SystemExit
        left[0] -= 1
        return function(*args, **kwargs)

    return call


def test_a_folder_that_is_gone_is_told(tmp_path, refusal):
    assert f"cannot write {tmp_path / 'gone' / 'last.pt'}" in refusal(Run().save, tmp_path / "gone/last.pt")


# What is no checkpoint


def zipped(**entries):
    """A zip with these entries in a folder, as torch writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name.replace('_', '.')}", content)
    return buffer.getvalue()


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


REDUCE_OF_NOTHING = b"\x80\x02R."
NOT_CHECKPOINTS = {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "noise": bytes(range(256)) * 16,
    "zip of another program": zipped(document_xml="<xml/>"),
    "zip with a damaged pickle": zipped(data_pkl=REDUCE_OF_NOTHING, version="3", byteorder="little"),
    "pickle": pickle.dumps({"format": FORMAT}),
    "tensor": saved(torch.zeros(3)),
    "state dict": saved(nn.Linear(2, 2).state_dict()),
    "module": saved(nn.Linear(2, 2)),
    "other format": saved({"format": "gfl-0", "model": {}}),
    "first half": saved({"format": FORMAT, "model": {"weight": torch.zeros(1000)}})[:2500],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", NOT_CHECKPOINTS.values(), ids=NOT_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, refusal, content):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    assert refusal(read_checkpoint, path).startswith(f"{path} is not a checkpoint of this program")


def test_a_missing_file_is_named(tmp_path, refusal):
    assert f"cannot read checkpoint {tmp_path / 'none.pt'}" in refusal(read_checkpoint, tmp_path / "none.pt")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("wrap", [saved, pickle.dumps])
def test_a_malicious_file_is_refused_and_not_executed(tmp_path, refusal, wrap):
    harm, path = tmp_path / "harm", tmp_path / "last.pt"
    pickle.loads(pickle.dumps(Trap(harm))).close()
    assert harm.exists()  # the trap works
    harm.unlink()
    path.write_bytes(wrap({"format": FORMAT, "model": {}, "config": Trap(harm)}))
    for read in (read_checkpoint, load_detector):
        assert str(path) in refusal(read, path)
    assert not harm.exists()


# Models


@pytest.mark.parametrize(
    ("other", "first"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), "2.weight"),
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), "2.weight"),
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1), nn.Linear(1, 1)), "3.weight"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_a_tensor(tmp_path, refusal, other, first):
    state = read_checkpoint(Run().save(tmp_path / "last.pt"))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    message = refusal(load_model_state, other, state, tmp_path / "last.pt")
    assert message.startswith(f"{tmp_path / 'last.pt'} is of another model: 2 tensors differ, first {first}")
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_first_file_of_a_run_folder_is_found(tmp_path):
    assert find_checkpoint(tmp_path, "best.pt", "last.pt") is None
    assert find_checkpoint(tmp_path / "none", "best.pt") is None
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).touch()
        assert find_checkpoint(tmp_path, "best.pt", "last.pt") == tmp_path / name
    assert find_checkpoint(tmp_path / "last.pt", "best.pt") == tmp_path / "last.pt"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run whose best and last detectors differ in one number."""
    folder = tmp_path_factory.mktemp("run")
    model = build_detector(SMALL, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name, value in (("last.pt", 3.0), ("best.pt", 7.0)):
        with torch.no_grad():
            model.head.scales.fill_(value)
        save_checkpoint(
            folder / name,
            model=model,
            config=SMALL,
            class_names=("disc", "ring"),
            progress=Progress(),
            optimizer=optimizer,
            scaler=torch.amp.GradScaler("cpu", enabled=False),
        )
    return folder


def test_a_detector_is_loaded_from_best_then_last_or_the_file_given(run_dir, tmp_path):
    for path, file, scale in [
        (run_dir, run_dir / "best.pt", 7),
        (run_dir / "last.pt", run_dir / "last.pt", 3),
    ]:
        model, config, class_names, found = load_detector(path)
        assert (config, class_names, found) == (SMALL, ("disc", "ring"), file)
        assert model.head.scales.tolist() == [scale] * 5
        assert not model.training
    (tmp_path / "last.pt").symlink_to(run_dir / "last.pt")
    assert load_detector(tmp_path)[-1] == tmp_path / "last.pt"


def test_overrides_change_the_config_of_a_checkpoint(run_dir, refusal):
    config = load_detector(run_dir, ["eval.nms_iou=0.5", "data.workers=0"])[1]
    assert (config.eval.nms_iou, config.data.workers, config.optim.lr) == (0.5, 0, 0.003)
    assert "did you mean eval.nms_iou?" in refusal(load_detector, run_dir, ["eval.nms_io=0.5"])
    message = refusal(load_detector, run_dir, ["model.head.reg_max=8"])
    assert f"{run_dir / 'best.pt'} is of another model: 2 tensors differ, first head.reg_out.weight" in message


def test_a_path_without_checkpoint_is_named(tmp_path, refusal):
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.pt"):
        assert f"no checkpoint at {path}" in refusal(load_detector, path)


def test_a_config_that_this_version_does_not_know_is_named_with_its_file(tmp_path, refusal):
    tree = config_to_dict(SMALL)
    tree["optim"]["nesterov"] = True
    path = tmp_path / "last.pt"
    contents = dict.fromkeys(WEIGHTS | TRAINING) | {"model": {}, "format": FORMAT, "config": tree, "class_names": ["a"]}
    torch.save(contents, path)
    assert f"config in {path}: unknown key optim.nesterov" in refusal(load_detector, path)
