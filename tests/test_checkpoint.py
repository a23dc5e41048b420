"""Checkpoints: complete, never partly written, and nothing in them is executed."""

import errno
import io
import os
import pickle
import zipfile

import pytest
import torch
from tiny_run import CLASS_NAMES, CONFIG, PROGRESS, save
from torch import nn

from gfl.checkpoint import (
    BEST,
    FORMAT,
    LAST,
    PREVIOUS,
    Progress,
    detector_content,
    load_detector,
    newest_checkpoint,
    read_checkpoint,
    write_torch_file,
)
from gfl.common.errors import UserError
from gfl.config_file import config_from_dict


def test_a_checkpoint_contains_config_classes_and_progress(tmp_path):
    state = read_checkpoint(save(tmp_path / LAST))
    assert config_from_dict(state["config"], "test") == CONFIG
    assert state["class_names"] == list(CLASS_NAMES)
    assert Progress(**state["progress"]) == PROGRESS
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "last.pt.json"]


def test_a_checkpoint_can_be_replaced_while_it_is_read(tmp_path):
    path = save(tmp_path / LAST)
    state = read_checkpoint(path)
    before = {name: tensor.clone() for name, tensor in state["model"].items()}
    save(path, steps=3)
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in before.items())
    assert not torch.equal(read_checkpoint(path)["model"]["0.weight"], before["0.weight"])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed\nwriting file"),
    ],
    ids=["OSError", "RuntimeError"],
)
def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch, refusal, error):
    path = save(tmp_path / LAST)
    before = path.read_bytes()

    def fail(state, file):
        file.write(b"half")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fail)
        assert str(path) in refusal(save, path)
        assert refusal(save, path).code == "unwritable"
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "last.pt.json"]


def test_a_missing_folder_is_named(tmp_path, refusal):
    assert str(tmp_path / "gone" / LAST) in refusal(save, tmp_path / "gone" / LAST)


@pytest.mark.parametrize("link", [True, False])
def test_the_checkpoint_before_is_kept_with_its_checksum(link, tmp_path, monkeypatch):
    if not link:  # as on a file system without hard links
        monkeypatch.setattr(os, "link", lambda *_: os.stat(tmp_path / "nothing such"))
    for epoch in (1, 2, 3):
        save(tmp_path / LAST, 1, Progress(epoch, 0), backup_to=tmp_path / PREVIOUS)
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "last.pt.json", "previous.pt", "previous.pt.json"]
    assert [read_checkpoint(tmp_path / name)["progress"]["epoch"] for name in (LAST, PREVIOUS)] == [3, 2]
    flip_bit(tmp_path / PREVIOUS)
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / PREVIOUS)


def test_what_was_verified_is_what_is_read(tmp_path, monkeypatch):
    path = save(tmp_path / LAST, 1, Progress(1, 0))
    monkeypatch.setattr("gfl.checkpoint.verify_checksum", lambda *_: save(path, 1, Progress(2, 0)))
    assert read_checkpoint(path)["progress"]["epoch"] == 1


def test_a_reader_always_finds_a_file_and_no_checksum_of_another(tmp_path, monkeypatch):
    """Every call that changes the folder is followed by a reader."""
    seen = []

    def then_read(function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            if (tmp_path / PREVIOUS).exists():
                seen.append([read_checkpoint(tmp_path / name)["progress"]["epoch"] for name in (LAST, PREVIOUS)])
            return result

        return call

    for epoch in (1, 2):
        save(tmp_path / LAST, epoch, Progress(epoch, 0), backup_to=tmp_path / PREVIOUS)
    for owner, name in ((os, "replace"), (os, "link"), (type(tmp_path), "unlink"), (type(tmp_path), "write_text")):
        monkeypatch.setattr(owner, name, then_read(getattr(owner, name)))
    save(tmp_path / LAST, 3, Progress(3, 0), backup_to=tmp_path / PREVIOUS)
    assert seen == sorted(seen)
    assert [list(state) for state in dict.fromkeys(map(tuple, seen))] == [[2, 1], [2, 2], [3, 2]]


@pytest.mark.parametrize("backup", [PREVIOUS, None])
def test_killed_anywhere_while_saving_there_is_a_complete_checkpoint(backup, tmp_path, monkeypatch):
    """Each call that changes the folder in turn is the last one that happens."""
    calls = [(os, "replace"), (os, "link"), (type(tmp_path), "unlink"), (type(tmp_path), "write_text"), (torch, "save")]
    for last in range(16):
        folder = tmp_path / str(last)
        folder.mkdir()
        backup_to = folder / backup if backup else None
        for epoch in (1, 2):
            save(folder / LAST, 1, Progress(epoch, 0), backup_to)
        left = [last]
        with monkeypatch.context() as patched:
            for owner, name in calls:
                patched.setattr(owner, name, exit_when_used_up(getattr(owner, name), left))
            try:
                save(folder / LAST, 1, Progress(3, 0), backup_to)
                finished = True
            except SystemExit:
                finished = False
        found, problems = newest_checkpoint(folder)
        assert read_checkpoint(found)["progress"]["epoch"] >= 2, last
        assert not problems, last
    assert finished


def exit_when_used_up(function, left):
    def call(*args, **kwargs):
        if left[0] == 0:
            raise SystemExit
        left[0] -= 1
        return function(*args, **kwargs)

    return call


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_bit])
def test_a_file_that_changed_after_it_was_written_is_refused(damage, tmp_path, refusal):
    path = save(tmp_path / LAST)
    damage(path)
    assert refusal(read_checkpoint, path).startswith(str(path))
    assert refusal(read_checkpoint, path).code == "checksum"


@pytest.mark.parametrize("text", [None, "", "7", '{"bytes": 3}', "[" * 5000 + "]" * 5000])
def test_a_file_without_a_readable_checksum_is_accepted(text, tmp_path):
    path = save(tmp_path / LAST)
    (tmp_path / "last.pt.json").unlink()
    if text is not None:
        (tmp_path / "last.pt.json").write_text(text)
    assert read_checkpoint(path)["class_names"]


def test_the_newest_readable_checkpoint_of_a_run_is_used_and_the_others_are_reported(tmp_path, refusal):
    assert newest_checkpoint(tmp_path) == (None, [])
    for steps, name in ((1, BEST), (2, LAST), (3, LAST)):
        save(tmp_path / name, steps, Progress(steps, 0), backup_to=tmp_path / PREVIOUS)
    for name, epoch in ((LAST, 3), (PREVIOUS, 2), (BEST, 1)):
        found, problems = newest_checkpoint(tmp_path)
        assert found == tmp_path / name
        assert read_checkpoint(found)["progress"]["epoch"] == epoch
        assert len(problems) == 3 - epoch
        truncate(found)
    assert PREVIOUS in refusal(newest_checkpoint, tmp_path)


# --- files that are not checkpoints -----------------------------------------------------------------------------------


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


ENDLESS = {}
ENDLESS["model"] = ENDLESS
REDUCE_OF_NOTHING = b"\x80\x02R."
NOT_CHECKPOINTS = {
    "empty": (b"", "damaged"),
    "zip of another kind": (zipped(document_xml="<xml/>"), "damaged"),
    "damaged pickle": (zipped(data_pkl=REDUCE_OF_NOTHING, version="3", byteorder="little"), "damaged"),
    "module": (saved(nn.Linear(2, 2)), "other_format"),
    "endless": (saved(ENDLESS), "damaged"),
    "tensor": (saved(torch.zeros(3)), "other_format"),
    "other format": (saved({"format": "gfl-0", "model": {}}), "other_format"),
    "first half": (saved({"format": FORMAT, "model": {"weight": torch.zeros(1000)}})[:2500], "damaged"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("content", "code"), NOT_CHECKPOINTS.values(), ids=NOT_CHECKPOINTS)
def test_a_file_that_is_not_a_checkpoint_is_named(tmp_path, refusal, content, code):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    assert refusal(read_checkpoint, path).startswith(str(path))
    assert refusal(read_checkpoint, path).code == code


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("wrap", [saved, pickle.dumps])
def test_a_malicious_file_is_refused_and_not_executed(tmp_path, refusal, wrap):
    harm, path = tmp_path / "harm", tmp_path / LAST
    pickle.loads(pickle.dumps(Trap(harm))).close()
    assert harm.exists()  # the trap works
    harm.unlink()
    path.write_bytes(wrap({"format": FORMAT, "model": {}, "config": Trap(harm)}))
    for read in (read_checkpoint, load_detector):
        assert str(path) in refusal(read, path)
    assert not harm.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("model", {"a": 3}),
        ("model", {"a": torch.zeros(2).to_sparse()}),
        ("model", {"a": torch.zeros(2, device="meta")}),
        ("config", 3),
        ("class_names", None),
        ("class_names", "ab"),
        ("class_names", []),
        ("class_names", ["a", "a"]),
        ("class_names", ["a", "\ud800"]),
    ],
)
def test_a_checkpoint_with_parts_of_other_types_is_refused(tmp_path, refusal, key, value):
    write_torch_file(tmp_path / LAST, detector_content({}, CONFIG, CLASS_NAMES) | {key: value})
    message = refusal(read_checkpoint, tmp_path / LAST)
    assert str(tmp_path / LAST) in message
    assert key in message
    assert key in refusal(newest_checkpoint, tmp_path)
