"""One hostile, damaged or other file of each kind; tests/robustness/test_pickle_attacks.py tries many more."""

import multiprocessing
import os
import pickle
import random
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from pickles import CALLS, HUGE, legacy, make_pickle, name_of, pack, plain, read_in_child, storage, view, zipped
from torch import nn

from gfl.common import torch_file, torch_pickle
from gfl.common.torch_file import read_torch_file
from gfl.common.torch_pickle import Placeholder

BOTH_FORMATS = pytest.mark.parametrize("wrap", [zipped, legacy])


@pytest.fixture
def refused_as(refusal):
    """The code with which a file is refused."""

    def read(path):
        message = refusal(read_torch_file, path)
        assert str(path) in message
        return message.code

    return read


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


@pytest.mark.parametrize("way", CALLS)
def test_a_function_that_a_file_names_is_not_called(way, path, tmp_path):
    harm = tmp_path / "harm"
    content = make_pickle(CALLS[way]("os", "system", plain(f"touch {harm}")))
    for wrap in (zipped, legacy):
        path.write_bytes(wrap(content))
        assert isinstance(read_torch_file(path), Placeholder)
    assert not harm.exists()
    child = multiprocessing.get_context("fork").Process(target=pickle.loads, args=(content,))
    child.start()
    child.join()
    assert harm.exists()  # pickle's own unpickler runs it


@BOTH_FORMATS
def test_a_module_that_a_file_names_is_not_imported(wrap, path, tmp_path, monkeypatch):
    (tmp_path / "trap_module.py").write_text("def f(*_): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path.write_bytes(wrap(make_pickle(CALLS["reduce"]("trap_module", "f", plain(1)))))
    assert isinstance(read_torch_file(path), Placeholder)
    assert "trap_module" not in sys.modules


@BOTH_FORMATS
def test_state_does_not_change_what_the_next_file_sees(wrap, path):
    """BUILD sets attributes of whatever is on the stack, also of the reader's own functions."""
    parameter = name_of("torch._utils", "_rebuild_parameter")
    before = dict(vars(Placeholder)), dict(vars(torch_pickle.Unpickler.rebuild_parameter))
    for target in (name_of("unknown", "Class"), parameter, view()):
        path.write_bytes(wrap(make_pickle(target, pack(b"N", plain({"__call__": 1, "injected": 2})), b"b")))
        read_torch_file(path)
    assert (dict(vars(Placeholder)), dict(vars(torch_pickle.Unpickler.rebuild_parameter))) == before


ATTACKS = {
    "write beyond the file": (
        name_of("torch._utils", "_rebuild_parameter") + storage(numel=HUGE) + b"R",
        view(storage("LongStorage", 1), size=(1,)),
        b"K\x07s",
    ),
    "a key of tuples in tuples": (b"})", b"\x85" * 200_000, b"Ns"),
    "a key of tuples that share tuples": (b"})", b"2\x86" * 60, b"Ns"),
    "keys with one hash": (b"}(", *(plain(n * (2**61 - 1)) + b"N" for n in range(2**15)), b"u"),
    "a list in itself": (b"]q\x00h\x00a",),
    "large memo": (b"Nr", struct.pack("<I", 2**24)),
    "large bytes": (b"\x8e", struct.pack("<Q", 2**40)),
    "large byte array": (b"\x96", struct.pack("<Q", 2**40)),
    "arithmetic": (view(storage(numel=1), size=(2**25,), stride=(0,)), b"(K\x01\x90"),
    "empty stack": (b"0000",),
}


@BOTH_FORMATS
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_pickle_neither_crashes_nor_takes_memory(attack, wrap, path):
    path.write_bytes(wrap(make_pickle(*ATTACKS[attack]), struct.pack("<q", 2**40) + bytes(56)))
    read_in_child(path)


@BOTH_FORMATS
@pytest.mark.parametrize(
    "tensor",
    [
        *(view(storage(numel=numel), size=(1,)) for numel in (HUGE, 10_000, -1, -(2**63), 2.0, "16", None)),
        *(view(storage(dtype, 2**63 - 1), size=(1,)) for dtype in ("ByteStorage", "HalfStorage")),
        view(storage("DoubleStorage", 2**61 + 2), size=(1,)),
        *(view(offset=offset, size=(1,)) for offset in (16, -1, 2**62, 2**64)),
        view(size=(17,)),
        view(size=(17,), stride=(0,)),
        view(size=(16,) * 20, stride=(0,) * 20),
        view(size=(1,) * 65, stride=(1,) * 65),
        view(size=(2**70, 0), stride=(0, 0)),
        pack(view(), b"q\x00", b"h\x00" * 1000),
        view(storage(numel=17), size=(17,)),
        view(size=(-1,)),
        view(size=(2.0,)),
        view(offset=4, size=(2,), stride=(-1,)),
        view(size=(2, 2), stride=(1,)),
        view(size=(2, 2), stride=(16, 1)),
        view(size=(2, 2), stride=(2**63 - 1, 1)),
        view(size=(3, 3), stride=(2**62, 2**62)),
        view(size=(2**32, 2**32), stride=(0, 0)),
        view(size=(2**63 - 1, 2), stride=(0, 0)),
    ],
)
def test_a_tensor_beyond_the_file_is_refused(tensor, wrap, path, refused_as):
    path.write_bytes(wrap(make_pickle(tensor)))
    assert refused_as(path) == "damaged"


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "byteorder"])
def test_a_compressed_archive_is_refused_before_it_is_unpacked(member, path):
    entries = {"data.pkl": make_pickle(view()), "data/0": bytes(64), "byteorder": b"little"}
    bomb = entries.pop(member) + bytes(100_000_000)
    with zipfile.ZipFile(path, "w") as archive:
        for name, entry in entries.items():
            archive.writestr(f"archive/{name}", entry)
        archive.writestr(f"archive/{member}", bomb, compress_type=zipfile.ZIP_DEFLATED, compresslevel=1)
    del bomb
    assert read_in_child(path) == "refused"


@pytest.mark.parametrize("length", [0, 8, 65, 10_000, 2**31 - 1, 2**32 - 2])
@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_a_false_length_in_an_archive_is_refused(member, length, path):
    content = zipped(make_pickle(view()))
    entry = content.index(b"PK\1\2", content.index(b"PK\1\2") + (1 if member == "data/0" else 0))
    both = struct.pack("<2L", length, length)  # compressed and not
    path.write_bytes(content[: entry + 20] + both + content[entry + 28 :])
    assert read_in_child(path) == "refused"


def test_other_members_of_an_archive_are_ignored(path, tmp_path):
    others = {"../../../evil": b"x", "/etc/evil": b"x", "data/../data.pkl": b"c", "code/x.py": b"raise SystemExit"}
    path.write_bytes(zipped(make_pickle(view()), **others))
    assert torch.equal(read_torch_file(path), torch.zeros(16))
    assert os.listdir(tmp_path) == [path.name]


def test_a_member_that_occurs_twice_is_harmless(path):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for content in (make_pickle(view()), b"damaged", make_pickle(plain(7))):
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/data/0", bytes(64))
    read_in_child(path)


def torch_script():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Linear(2, 2)).save_to_buffer()


OTHERS = {
    "empty": b"",
    "noise": random.Random(1).randbytes(5000),
    "start of a zip, then noise": b"PK\x03\x04" + random.Random(2).randbytes(5000),
    "pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "pickle": pickle.dumps({"state_dict": {}}),
    "pickle of the magic number": pickle.dumps(torch_file.MAGIC, 2),
    "zip without pickle": zipped(b"N.").replace(b"data.pkl", b"data.txt"),
    "big-endian zip": zipped(b"N.", byteorder=b"big"),
    "big-endian": legacy(b"N.").replace(b"little_endianq\x01\x88", b"little_endianq\x01\x89"),
    "zip with a missing storage": zipped(make_pickle(view(storage(key="1")))),
    "legacy with a missing storage": legacy(make_pickle(view(storage(key="1")))),
    "zip with a path": zipped(make_pickle(view(storage(key="../../../etc/passwd")))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_is_refused(name, path, refused_as):
    path.write_bytes(OTHERS[name])
    assert refused_as(path) == "damaged"


def test_torch_script_is_refused(path, refused_as):
    path.write_bytes(torch_script())
    assert refused_as(path) == "damaged"


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused(new, path, refused_as):
    torch.save({"state_dict": nn.Linear(30, 20).state_dict()}, path, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    for length in (1, 5, *range(100, len(content), len(content) // 12), len(content) - 22, len(content) - 1):
        path.write_bytes(content[:length])
        assert refused_as(path) == "damaged", length


def test_a_folder_and_a_missing_file_are_refused(tmp_path, refused_as):
    for path in (tmp_path, tmp_path / "no", Path(__file__) / "file.pth"):
        assert refused_as(path) == "unreadable"
