"""Files of `torch.save`: tensors and plain data are read exactly, and unknown objects become placeholders.

Hostile files are in test_hostile_files.py.
"""

import datetime
import enum
import logging
import os
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pickles import legacy, make_pickle, plain, read_in_child, storage, view, zipped
from torch import nn

from gfl.common.errors import UserError
from gfl.common.torch_file import read_torch_file
from gfl.common.torch_pickle import DTYPES, Placeholder

FORMATS = {
    f"{name}, pickle protocol {protocol}": {"_use_new_zipfile_serialization": new, "pickle_protocol": protocol}
    for name, new in (("zip", True), ("legacy", False))
    for protocol in (2, 5)
}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def round_trip(request, tmp_path):
    """Write a value and read it back."""

    def call(value):
        torch.save(value, tmp_path / "file.pth", **request.param)
        return read_torch_file(tmp_path / "file.pth")

    return call


def assert_same(ours, theirs):
    assert type(ours) is torch.Tensor
    assert (ours.dtype, ours.shape, ours.device.type) == (theirs.dtype, theirs.shape, "cpu")
    assert not ours.requires_grad
    assert torch.equal(ours, theirs.detach())


def refuse(path):
    with pytest.raises(UserError) as error:
        read_torch_file(path)
    assert str(path) in str(error.value)
    return error.value.code


# --- tensors and plain data -------------------------------------------------------------------------------------------


def test_tensors_of_every_type_are_read(round_trip):
    numbers = torch.tensor([0, 1, -3, 100, 7])
    tensors = {str(dtype): numbers.to(dtype) for dtype in DTYPES.values()}
    tensors = {"odd": torch.arange(3, dtype=torch.uint8)} | tensors  # the next is not aligned in a legacy file
    content = round_trip(tensors)
    assert list(content) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(content[name], tensor)


def test_tensors_of_every_layout_are_read(round_trip):
    base = torch.arange(24.0).view(2, 3, 4)
    tensors = {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0),
        "empty with sides": torch.empty(3, 0, 2),
        "permuted": base.permute(2, 0, 1),
        "column": base[:, :, 2],
        "every other": base.flatten()[1::2],
        "channels last": torch.arange(48.0).view(1, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.arange(3.0)),
    }
    content = round_trip(tensors)
    for name, tensor in tensors.items():
        assert_same(content[name], tensor)
        assert content[name].stride() == tensor.stride(), name
        assert content[name].storage_offset() == tensor.storage_offset(), name


def test_tensors_that_share_memory_still_do(round_trip):
    base = torch.arange(10.0)
    first, part, again = round_trip([base, base[3:5], base])
    first[4] = 77
    assert part.tolist() == [3, 77]
    assert again[4] == 77
    assert first.untyped_storage()._cdata == part.untyped_storage()._cdata  # so that saving writes it once


def test_changing_a_tensor_does_not_change_the_file(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "file.pth")
    before = (tmp_path / "file.pth").read_bytes()
    read_torch_file(tmp_path / "file.pth").fill_(7)
    assert (tmp_path / "file.pth").read_bytes() == before


def test_a_state_dict_keeps_its_order(round_trip):
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    content = round_trip(state)
    assert isinstance(content, OrderedDict)
    assert list(content) == list(state)
    for name, tensor in state.items():
        assert_same(content[name], tensor)


def test_plain_data_are_read(round_trip):
    value = {
        "meta": {"epoch": 12, "time": "Mon", "lr": [0.1, 1e-30], "none": None, "flags": (True, False)},
        "CLASSES": ("Ampel", "Büste", "猫"),
        "keys": {0.5: 1, None: 2, True: 3},
        "big": 2**70,
        5: [[]],
    }
    value["self"] = value["meta"]
    content = round_trip(value)
    assert content == value
    assert content["self"] is content["meta"]
    assert round_trip(torch.zeros(2, 3).shape) == (2, 3)


@pytest.mark.parametrize("new", [True, False])
def test_tensors_of_a_gpu_are_read_to_the_cpu(new, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        torch.save({"a": torch.ones(2)}, tmp_path / "file.pth", _use_new_zipfile_serialization=new)
    assert b"cuda:3" in (tmp_path / "file.pth").read_bytes()
    assert_same(read_torch_file(tmp_path / "file.pth")["a"], torch.ones(2))


@pytest.mark.parametrize("wrap", [zipped, legacy])
def test_files_by_hand_are_valid(wrap, tmp_path):
    path, data = tmp_path / "file.pth", np.arange(16, dtype="<f4").tobytes()
    of = storage(no_view=[b"N"] if wrap is legacy else [])
    path.write_bytes(wrap(make_pickle(view(of, offset=2, size=(2, 3), stride=(3, 1))), data))
    assert_same(torch.load(path, weights_only=True), torch.arange(2.0, 8).view(2, 3))
    assert_same(read_torch_file(path), torch.arange(2.0, 8).view(2, 3))
    assert read_in_child(path) == "read"


def test_a_view_of_a_storage_in_an_old_file_has_its_own_start(tmp_path):
    path, data = tmp_path / "file.pth", np.arange(16, dtype="<f4").tobytes()

    def part(start):
        return make_pickle(view(storage(no_view=[plain(("view", start, 4))]), offset=1, size=(3,)))

    path.write_bytes(legacy(part(5), data))
    assert read_torch_file(path).tolist() == [6, 7, 8]
    for start in (13, -2, 2**62):
        path.write_bytes(legacy(part(start), data))
        assert refuse(path) == "damaged"


# --- objects of unknown classes ---------------------------------------------------------------------------------------


class Cyclic:
    def __init__(self):
        self.number, self.inner = 3, [self]


class CustomDict(dict):
    pass


class Level(enum.Enum):
    LOW = 1


class Row(NamedTuple):
    x: int


class WithState:
    def __getstate__(self):
        return [1, 2]

    def __setstate__(self, state):
        raise AssertionError("this ran")


UNKNOWN = {
    "object": Cyclic(),
    "state": WithState(),
    "class": Cyclic,
    "function": os.getcwd,
    "dict": CustomDict(a=1),
    "enum": Level.LOW,
    "named tuple": Row(3),
    "array": np.arange(3),
    "array of objects": np.array([None, "x"], dtype=object),
    "date": datetime.datetime(2020, 6, 29),
    "defaultdict": defaultdict(list, a=[1]),
    "logger": logging.getLogger("training"),
    "complex": 1j,
    "dtype": torch.float32,
    "device": torch.device("cpu"),
    "module": nn.Linear(2, 2),
    "sparse": torch.eye(2).to_sparse(),
    "exception": ValueError("x"),
    "set": {1, 2},
    "frozenset": frozenset({1, 2}),
}


def is_placeholder(value):
    return isinstance(value, Placeholder) or (isinstance(value, type) and issubclass(value, Placeholder))


def test_unknown_objects_become_placeholders_and_tensors_beside_them_are_read(round_trip):
    tensor = torch.arange(5.0)
    content = round_trip({name: [tensor, value, [value, 7], tensor + 1] for name, value in UNKNOWN.items()})
    for name, (before, value, (again, number), after) in content.items():
        assert is_placeholder(value), name
        assert is_placeholder(again), name
        assert number == 7
        assert_same(before, tensor)
        assert_same(after, tensor + 1)


def test_a_class_of_a_package_that_is_not_installed_becomes_a_placeholder(round_trip, monkeypatch):
    module = types.ModuleType("no_such_package.logging")

    class HistoryBuffer:
        def __init__(self):
            self.history, self.methods = np.arange(4.0), {"mean": self.mean}

        def mean(self):
            return 0

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    buffer, real_save = HistoryBuffer(), torch.save

    def save(*args, **kwargs):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, module.__name__, module)
            patched.setitem(sys.modules, "no_such_package", types.ModuleType("no_such_package"))
            real_save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    content = round_trip({"message_hub": {"loss": buffer, buffer: "key"}, "state_dict": {"a": torch.ones(2)}})
    assert "no_such_package" not in sys.modules
    loss, key = content["message_hub"]
    assert isinstance(content["message_hub"][loss], Placeholder)
    assert content["message_hub"][key] == "key"
    assert_same(content["state_dict"]["a"], torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16, torch.float8_e4m3fn])
def test_tensors_beside_one_of_an_unsupported_type_are_read(dtype, tmp_path):
    torch.save({"a": torch.ones(2), "b": torch.ones(2).to(dtype), "c": torch.ones(3)}, tmp_path / "file.pth")
    content = read_torch_file(tmp_path / "file.pth")
    assert_same(content["a"], torch.ones(2))
    assert_same(content["c"], torch.ones(3))
    assert not isinstance(content["b"], torch.Tensor)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'\x10\0\0\0\0\0\0\0{"a": {}}     ', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, refusal, content, named):
    (tmp_path / "a.pth").write_bytes(content)
    error = refusal(read_torch_file, tmp_path / "a.pth")
    assert error.code == "damaged"
    assert named in error


def test_an_address_is_named(refusal):
    assert refusal(read_torch_file, Path("https://example.org/a.pth")).code == "url"
