"""Many malicious, damaged and other files for `read_torch_file`: it neither crashes nor takes memory.

tests/tools/convert/test_hostile_files.py has one of each kind.
"""

import io
import os
import pickle
import random
import struct
import sys
import warnings
import zipfile

import pytest
import torch
from pickles import HUGE, call, legacy, name_of, pack, plain, program, read_in_child, storage, view, zipped
from torch import nn

from gfl.tools.convert import torch_file
from gfl.tools.convert.torch_file import read_torch_file

pytestmark = pytest.mark.robustness


class Unknown:
    def __init__(self):
        self.number, self.inner = 3, [self]


def assert_same(ours, theirs):
    assert type(ours) is torch.Tensor
    assert torch.equal(ours, theirs.detach())


def flat(dtype="FloatStorage", numel=16):
    """The whole storage as a tensor, past every check of a view."""
    return name_of("torch._utils", "_rebuild_parameter") + storage(dtype, numel) + b"R"


REBUILD = name_of("torch._utils", "_rebuild_tensor")
BEYOND = struct.pack("<q", 2**40) + bytes(56)  # as an index
EXPANDED = view(storage(numel=1), size=(2**18,), stride=(0,))
ATTACKS = {
    "write beyond the file": (flat(numel=HUGE), view(storage("LongStorage", 1), size=(1,)), b"K\x07s"),
    "a function that calls itself": (REBUILD, b"q\x00", pack(b"h\x00", b")", b"}", b"N"), b"b)R"),
    "a key of tuples in tuples": (b"})", b"\x85" * 200_000, b"Ns"),
    "lists in lists": (b"]" * 100_000, b"a" * 99_999),
    "a list in itself": (b"]q\x00h\x00a",),
    "a dict in itself": (b"}q\x00K\x01h\x00s",),
    "a large memo": (b"Nr", struct.pack("<I", 2**24)),
    "a large memo in digits": (b"Np", str(2**24).encode(), b"\n"),
    "large bytes": (b"\x8e", struct.pack("<Q", 2**40)),
    "large byte array": (b"\x96", struct.pack("<Q", 2**40)),
    "large text": (b"\x8d", struct.pack("<Q", 2**40)),
    "large number": (b"\x8b", struct.pack("<I", 2**31 - 1)),
    "large frame": (b"\x95", struct.pack("<Q", 2**40), b"N"),
    "negative length": (b"T", struct.pack("<i", -1)),
    "arithmetic": (view(storage(numel=1), size=(2**25,), stride=(0,)), b"(K\x01\x90"),
    "set of a tensor": (call(name_of("builtins", "set"), EXPANDED),),
    "size of a tensor": (call(name_of("torch", "Size"), EXPANDED),),
    "state of a tensor": (view(), pack(*[view(storage(numel=0), 0, (0,))], *map(plain, (0, (2**28,), (1,)))), b"b"),
    "no stack": (b"0000",),
    "no mark": (b"t",),
    "no memo": (b"h\x05",),
    "text id": (b"Pabcdef\n",),
    "short id": (pack(plain(1)), b"Q"),
    "a new object of a tensor": (view(), b")\x81"),
    "call a tensor": (view(), b")R"),
    "append to a tensor": (view(), b"K\x01a"),
    "extend a tensor": (view(), b"(K\x01K\x02e"),
    "buffer": (b"\x97",),
    "protocol 200": (b"\x80\xc8N",),
}


@pytest.mark.parametrize("wrap", [zipped, legacy])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_pickle_neither_crashes_nor_takes_memory(attack, wrap, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(wrap(program(*ATTACKS[attack]), BEYOND))
    read_in_child(path)


@pytest.mark.parametrize(
    ("dtype", "numel"),
    [
        ("ByteStorage", 2**63 - 1),
        ("FloatStorage", 10_000),
        ("FloatStorage", HUGE),
        ("DoubleStorage", 2**61 + 2),
        ("HalfStorage", 2**63 - 1),
        ("HalfStorage", 2**63),
        ("FloatStorage", -1),
        ("FloatStorage", -(2**63)),
        ("FloatStorage", 2.0),
        ("FloatStorage", "16"),
        ("FloatStorage", None),
    ],
)
def test_a_storage_beyond_the_file_is_refused(dtype, numel, tmp_path, refusal):
    for wrap in (zipped, legacy):
        (tmp_path / "file.pth").write_bytes(wrap(program(view(storage(dtype, numel), size=(1,)))))
        assert str(tmp_path) in refusal(read_torch_file, tmp_path / "file.pth")


def test_a_storage_beyond_its_member_is_refused(tmp_path, refusal):
    (tmp_path / "file.pth").write_bytes(zipped(program(view(storage(numel=17), size=(17,)))))
    assert str(tmp_path) in refusal(read_torch_file, tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (17,), (1,)),
        (1, (16,), (1,)),
        (-1, (16,), (1,)),
        (4, (2,), (-1,)),
        (0, (2, 2), (-4, 4)),
        (0, (2, 2), (16, 1)),
        (0, (2, 2), (2**63 - 1, 1)),
        (0, (3, 3), (2**62, 2**62)),
        (0, (2**32, 2**32), (0, 0)),
        (0, (2**63 - 1, 2), (0, 0)),
        (0, (-1,), (1,)),
        (0, (2, 2), (1,)),
        (0, (2.0,), (1,)),
        (2**62, (1,), (1,)),
        (2**64, (1,), (1,)),
    ],
)
def test_a_view_beyond_its_storage_is_refused(offset, size, stride, tmp_path, refusal):
    for wrap in (zipped, legacy):
        (tmp_path / "file.pth").write_bytes(wrap(program(view(offset=offset, size=size, stride=stride))))
        assert str(tmp_path) in refusal(read_torch_file, tmp_path / "file.pth")


# --- files of another kind or damaged ---------------------------------------------------------------------------------


def example(new):
    buffer = io.BytesIO()
    value = {"meta": {"CLASSES": ("a", "b"), "log": Unknown()}, "state_dict": nn.Linear(30, 20).state_dict()}
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_file_is_refused(new, tmp_path, refusal):
    whole, path = example(new), tmp_path / "file.pth"
    lengths = {len(whole) * part // 40 for part in range(40)} | {1, 2, 3, 4, 5, 30, len(whole) - 22, len(whole) - 1}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        assert str(path) in refusal(read_torch_file, path), length
    path.write_bytes(whole)
    assert_same(read_torch_file(path)["state_dict"]["bias"], torch.load(path, weights_only=False)["state_dict"]["bias"])


@pytest.mark.parametrize("new", [True, False])
def test_a_damaged_file_never_crashes(new, tmp_path):
    whole, path, rng = bytearray(example(new)), tmp_path / "file.pth", random.Random(0)
    pickle_start = whole.find(b"\x80\x02")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(25):
            damaged = bytearray(whole)
            for _ in range(3):
                damaged[rng.randrange(pickle_start, pickle_start + 700)] = rng.randrange(256)
            path.write_bytes(damaged)
            read_in_child(path, mebibytes=2**20)


OTHERS = {
    "empty": b"",
    "one byte": b"P",
    "noise": random.Random(1).randbytes(5000),
    "zeros": bytes(5000),
    "zip start and noise": b"PK\x03\x04" + random.Random(2).randbytes(5000),
    "pickle start and noise": b"\x80\x02" + random.Random(3).randbytes(5000),
    "pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
    "page": b"<!DOCTYPE html><html><body>404</body></html>",
    "pickle": pickle.dumps({"state_dict": {}}),
    "pickle of the magic number": pickle.dumps(torch_file.MAGIC, 2),
    "empty zip": b"PK\x05\x06" + bytes(18),
    "zip without pickle": zipped(b"N.").replace(b"data.pkl", b"data.txt"),
    "big-endian zip": zipped(b"N.", byteorder=b"big"),
    "big-endian": legacy(b"N.").replace(b"little_endianq\x01\x88", b"little_endianq\x01\x89"),
    "zip with a missing storage": zipped(program(view(storage(key="1")))),
    "legacy with a missing storage": legacy(program(view(storage(key="1")))),
    "zip with a path": zipped(program(view(storage(key="../../../etc/passwd")))),
    "numpy": b"\x93NUMPY\x01\x00",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_is_refused(name, tmp_path, refusal):
    path = tmp_path / "file.pth"
    path.write_bytes(OTHERS[name])
    assert str(path) in refusal(read_torch_file, path)


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "byteorder"])
def test_a_compressed_archive_is_refused_before_it_is_unpacked(member, tmp_path):
    path = tmp_path / "file.pth"
    entries = {"data.pkl": program(view()), "data/0": bytes(64), "byteorder": b"little"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, entry in entries.items():
            if name != member:
                archive.writestr(f"archive/{name}", entry)
        entry = entries[member] + bytes(100_000_000)
        archive.writestr(f"archive/{member}", entry, compress_type=zipfile.ZIP_DEFLATED, compresslevel=1)
    del entry
    assert read_in_child(path) == "refused"


def test_members_of_strange_names_do_not_matter(tmp_path):
    path, modules = tmp_path / "file.pth", dict(sys.modules)
    strange = {"../../../evil": b"x", "/etc/evil": b"x", "data/../data.pkl": b"c", "code/x.py": b"raise SystemExit"}
    path.write_bytes(zipped(program(view()), **strange))
    assert_same(read_torch_file(path), torch.zeros(16))
    assert os.listdir(tmp_path) == ["file.pth"]
    assert sys.modules == modules


def test_a_member_that_occurs_twice_is_harmless(tmp_path):
    path = tmp_path / "file.pth"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for content in (program(view()), b"damaged", program(plain(7))):
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/data/0", bytes(64))
    assert read_in_child(path) in ("read", "refused")
