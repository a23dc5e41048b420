"""Many malicious pickles for `read_torch_file`: nothing is executed, nothing crashes or takes memory.

tests/common/test_hostile_files.py has one of each kind.
"""

import contextlib
import copyreg
import io
import random
import struct
import sys
from collections import OrderedDict

import pytest
import torch
from pickles import (
    CALLS,
    HUGE,
    call,
    legacy,
    make_pickle,
    name_of,
    pack,
    plain,
    read_in_child,
    storage,
    view,
    zipped,
)
from torch import nn

from gfl.common import torch_file, torch_pickle
from gfl.common.errors import UserError
from gfl.common.torch_file import read_torch_file
from gfl.common.torch_pickle import DTYPES, FUNCTIONS, Placeholder

pytestmark = pytest.mark.robustness


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


@pytest.fixture
def harm(tmp_path, monkeypatch):
    """A file that must not appear; importing `trap_module` creates it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "trap_module.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\ndef f(*_): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return tmp_path / "harm"


# Functions and arguments, in which HARM stands for the file.
TRAPS = {
    "system": ("os", "system", "touch HARM"),
    "eval": ("builtins", "eval", "open('HARM', 'w')"),
    "eval of Python 2": ("__builtin__", "eval", "open('HARM', 'w')"),
    "open": ("builtins", "open", "HARM", "w"),
    "import": ("importlib", "import_module", "trap_module"),
    "import by name": ("trap_module", "f", 1),
    "torch.save": ("torch", "save", 1, "HARM"),
    "torch.load": ("torch", "load", "HARM", None, None),
    "copyreg": ("copyreg", "add_extension", "os", "system", 66),
}


@pytest.mark.parametrize("way", CALLS)
@pytest.mark.parametrize("name", TRAPS)
def test_a_function_that_a_file_names_is_not_called(name, way, harm, path):
    module, function, *arguments = TRAPS[name]
    filled = [value.replace("HARM", str(harm)) if isinstance(value, str) else value for value in arguments]
    content = make_pickle(CALLS[way](module, function, *map(plain, filled)))
    with_state = content[:-1] + name_of("trap_module", "f") + b"b."
    for file in (wrap(pickled) for wrap in (zipped, legacy) for pickled in (content, with_state)):
        path.write_bytes(file)
        modules = dict(sys.modules)
        assert isinstance(read_torch_file(path), Placeholder)
        assert sys.modules == modules
        assert not harm.exists()


@pytest.mark.parametrize("position", range(5))
def test_none_of_the_five_pickles_of_an_old_file_is_executed(position, harm, path):
    pickles = [plain(torch_file.MAGIC), plain(1001), plain({"little_endian": True}), b"N", plain([])]
    pickles[position] = call(name_of("os", "system"), plain(f"touch {harm}"))
    path.write_bytes(b"".join(make_pickle(content) for content in pickles))
    read_in_child(path)
    assert not harm.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "path.join"),
        ("torch", "serialization.os.system"),
        ("torch", "FloatStorage.__class__"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.fromkeys"),
        ("gfl.common.torch_file", "read_torch_file"),
        ("__main__", "x"),
        ("", ""),
    ],
)
def test_a_dotted_name_is_not_resolved(module, name, path):
    for wrap in (zipped, legacy):
        path.write_bytes(wrap(make_pickle(plain(module), plain(name), b"\x93")))
        found = read_torch_file(path)
        assert found is Placeholder


def test_a_registered_extension_is_not_called(harm, path):
    copyreg.add_extension("os", "system", 0x42)
    try:
        for code in (b"\x82\x42", b"\x83\x42\x00", b"\x84\x42\x00\x00\x00"):  # EXT1, EXT2, EXT4
            for wrap in (zipped, legacy):
                path.write_bytes(wrap(make_pickle(call(code, plain(f"touch {harm}")))))
                assert isinstance(read_torch_file(path), Placeholder)
    finally:
        copyreg.remove_extension("os", "system", 0x42)
        copyreg.clear_extension_cache()
    assert not harm.exists()


REACHABLE = {
    **{f"{module}.{name}": name_of(module, name) for module, name in FUNCTIONS},
    "OrderedDict()": name_of("collections", "OrderedDict") + b")R",
    "{}": b"}",
    "[]": b"]",
    "()": b")",
    "None": b"N",
    "dtype": name_of("torch", "FloatStorage"),
    "unknown class": name_of("unknown", "Class"),
    "unknown object": name_of("unknown", "Class") + b")R",
    "tensor": view(),
    "storage": storage(),
}
KEYS = ("__class__", "__call__", "__dict__", "__code__", "__setstate__")
STATES = {
    "attribute": plain({"injected": 1}),
    "slots": pack(b"N", plain({"injected": 1})),
    **{key: pack(b"N", b"}" + plain(key) + name_of("unknown", "Class") + b"s") for key in KEYS},
    "partial": pack(name_of("unknown", "Class"), b")", b"}", plain({"injected": 1})),
    "globals": plain({"__globals__": {}, "__reduce__": 1, "__init__": 2, "__new__": 3}),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("target", REACHABLE)
def test_state_changes_nothing_outside_its_file(target, state, path, tmp_path):
    """BUILD sets attributes of whatever is on the stack."""
    watched = [torch_file, Placeholder, torch_pickle.TensorInfo, torch_pickle.StorageInfo, Placeholder.append]
    watched += [*FUNCTIONS.values(), OrderedDict, torch.dtype, torch.Tensor]
    before = [dict(vars(thing)) for thing in watched], dict(FUNCTIONS), dict(DTYPES)
    for wrap in (zipped, legacy):
        path.write_bytes(wrap(make_pickle(REACHABLE[target], STATES[state], b"b")))
        with contextlib.suppress(UserError):
            read_torch_file(path)
    assert ([dict(vars(thing)) for thing in watched], FUNCTIONS, DTYPES) == before
    torch.save({"a": nn.Parameter(torch.ones(2)), "b": random.Random()}, path)
    content = read_torch_file(path)
    assert torch.equal(content["a"], torch.ones(2))
    assert not hasattr(content["b"], "injected")


REBUILD = name_of("torch._utils", "_rebuild_tensor")
WHOLE = name_of("torch._utils", "_rebuild_parameter") + storage(numel=HUGE) + b"R"  # a storage in place of a tensor
PRIME = 2**61 - 1  # numbers that differ by it have one hash
LARGE = b"(" + b"N" * 200_000 + b"tq\x00"  # a tuple in the memo
EXPANDED = view(storage(numel=1), size=(2**18,), stride=(0,))
ATTACKS = {
    "write beyond the file": (WHOLE, view(storage("LongStorage", 1), size=(1,)), b"K\x07s"),
    "a function that calls itself": (REBUILD, b"q\x00", pack(b"h\x00", b")", b"}", b"N"), b"b)R"),
    "a key of tuples in tuples": (b"})", b"\x85" * 200_000, b"Ns"),
    "a key of tuples that share tuples": (b"})", b"2\x86" * 60, b"Ns"),
    "tuples that share tuples": (b")", b"2\x86" * 60),
    "keys with one hash": (b"}(", *(plain(n * PRIME) + b"N" for n in range(2**15)), b"u"),
    "keys of tuples with one hash": (
        b"}",
        *(pack(*(struct.pack("<ci", b"J", -1 - (n >> bit & 1)) for bit in range(15))) + b"Ns" for n in range(2**15)),
    ),
    "a set with one hash": (b"\x8f(", *(plain(n * PRIME) for n in range(2**15)), b"\x90"),
    "memo numbers with one hash": (b"N", *(b"p%d\n" % (n * PRIME) for n in range(2**15))),
    "more instructions than any checkpoint": (b"](", b"N" * torch_pickle.MAX_INSTRUCTIONS, b"e"),
    "large arguments again and again": (LARGE, name_of("unknown", "f"), b"q\x01", b"h\x01h\x00R0" * 100_000),
    "large arguments of objects": (LARGE, name_of("unknown", "C"), b"q\x01", b"h\x01h\x00\x810" * 100_000),
    "large dicts again and again": (
        b"](" + b"NN\x86" * 50_000 + b"e\x85q\x00",
        name_of("collections", "OrderedDict") + b"q\x01",
        b"h\x01h\x00R0" * 100_000,
    ),
    "large storages": (LARGE, b"h\x00Q0" * 100_000),
    "a tensor of many dimensions": (b"](", view(size=(1,) * 200_000, stride=(1,) * 200_000), b"e"),
    "a size of many digits": (view(size=(2**80_000,) * 64, stride=(1,) * 64),),
    "a key of many letters": (b"](", *[view(storage(key="x" * 100_000))] * 9, b"e"),
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
def test_a_malicious_pickle_neither_crashes_nor_takes_memory(attack, wrap, path):
    beyond = struct.pack("<q", 2**40) + bytes(56)  # as an index
    path.write_bytes(wrap(make_pickle(*ATTACKS[attack]), beyond))
    read_in_child(path)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_randomly_damaged_file_never_crashes(new, path):
    buffer, rng = io.BytesIO(), random.Random(0)
    value = {"meta": {"CLASSES": ("a", "b"), "log": random.Random()}, "state_dict": nn.Linear(30, 20).state_dict()}
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    content = buffer.getvalue()
    start = content.find(b"\x80\x02")
    for _ in range(25):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.randrange(start, start + 700)] = rng.randrange(256)
        path.write_bytes(damaged)
        read_in_child(path, mebibytes=2**20)


@pytest.mark.parametrize("make", [b"}", b"]\x94", b"\x8f", b"}NNs", b"("])
def test_a_pickle_of_containers_takes_little_memory_and_time(make, path):
    path.write_bytes(zipped(make_pickle(b"](", make * (2 * torch_pickle.MAX_INSTRUCTIONS // len(make)), b"e")))
    read_in_child(path, mebibytes=256)


def test_an_archive_of_many_members_is_refused_before_its_directory_is_read(path):
    count = 500_000
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *[0] * 9, 1, *[0] * 6) + b"x"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, count * len(entry), 4, 0)
    path.write_bytes(b"PK\3\4" + entry * count + end)
    assert read_in_child(path) == "refused"
