"""Files of `torch.save`: tensors come back whole, nothing is executed, and no file harms the process that reads it."""

import contextlib
import copyreg
import ctypes
import datetime
import enum
import faulthandler
import functools
import io
import logging
import multiprocessing
import os
import pickle
import random
import resource
import struct
import sys
import types
import warnings
import zipfile
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from gfl.common.errors import UserError
from gfl.tools.convert import torch_file
from gfl.tools.convert.torch_file import CONTAINERS, DTYPES, Placeholder, read_torch_file

FORMATS = {
    f"{name}, pickle protocol {protocol}": {"_use_new_zipfile_serialization": new, "pickle_protocol": protocol}
    for name, new in (("zip", True), ("legacy", False))
    for protocol in (2, 3, 4, 5)
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


# --- tensors and plain data -------------------------------------------------------------------------------------------


def test_tensors_of_every_type_come_back(round_trip):
    numbers = torch.tensor([0, 1, -3, 100, 7])
    tensors = {str(dtype): numbers.to(dtype) for dtype in DTYPES.values()}
    tensors = {"odd": torch.arange(3, dtype=torch.uint8)} | tensors  # what follows is not aligned in a legacy file
    content = round_trip(tensors)
    assert list(content) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(content[name], tensor)


def test_tensors_of_every_layout_come_back(round_trip):
    base = torch.arange(24.0).view(2, 3, 4)
    tensors = {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0),
        "empty with sides": torch.empty(3, 0, 2),
        "transposed": base.mT,
        "permuted": base.permute(2, 0, 1),
        "row": base[1],
        "column": base[:, :, 2],
        "every other": base.flatten()[1::2],
        "channels last": torch.arange(48.0).view(1, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    content = round_trip(tensors)
    for name, tensor in tensors.items():
        assert_same(content[name], tensor)
        assert content[name].stride() == tensor.stride(), name


def test_tensors_that_share_their_memory_still_do(round_trip):
    base = torch.arange(10.0)
    whole, part, again = round_trip([base, base[3:5], base])
    whole[4] = 77
    assert part.tolist() == [3, 77]
    assert again[4] == 77


def test_a_changed_tensor_does_not_change_the_file(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "file.pth")
    before = (tmp_path / "file.pth").read_bytes()
    read_torch_file(tmp_path / "file.pth").fill_(7)
    assert (tmp_path / "file.pth").read_bytes() == before


def test_a_state_dict_comes_back_in_its_order(round_trip):
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    content = round_trip(state)
    assert isinstance(content, OrderedDict)
    assert list(content) == list(state)
    for name, tensor in state.items():
        assert_same(content[name], tensor)


def test_parameters_are_tensors(round_trip):
    parameter = nn.Parameter(torch.arange(3.0))
    assert_same(round_trip({"weight": parameter})["weight"], parameter)


def test_plain_data_come_back(round_trip):
    value = {
        "meta": {"epoch": 12, "time": "Mon", "lr": [0.1, 1e-30], "none": None, "flags": (True, False)},
        "CLASSES": ("Ampel", "Büste", "猫"),
        "set": {1, 2},
        "big": 2**70,
        5: [[]],
    }
    value["self"] = value["meta"]
    content = round_trip(value)
    assert content == value
    assert content["self"] is content["meta"]
    assert round_trip(torch.zeros(2, 3).shape) == (2, 3)


@pytest.mark.parametrize("new", [True, False])
def test_tensors_of_a_gpu_come_to_the_cpu(new, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        torch.save({"a": torch.ones(2)}, tmp_path / "file.pth", _use_new_zipfile_serialization=new)
    assert b"cuda:3" in (tmp_path / "file.pth").read_bytes()
    assert_same(read_torch_file(tmp_path / "file.pth")["a"], torch.ones(2))


# --- objects of foreign classes ---------------------------------------------------------------------------------------


class Foreign:
    def __init__(self):
        self.number, self.inner = 3, [self]


class Slots:
    __slots__ = ("number",)

    def __init__(self):
        self.number = 3


class DictOfAProgram(dict):
    pass


class ListOfAProgram(list):
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


FOREIGN = {
    "object": Foreign(),
    "slots": Slots(),
    "state": WithState(),
    "class": Foreign,
    "function": os.getcwd,
    "dict": DictOfAProgram(a=1),
    "list": ListOfAProgram([1, 2]),
    "enum": Level.LOW,
    "named tuple": Row(3),
    "array": np.arange(3),
    "array of objects": np.array([None, "x"], dtype=object),
    "number of numpy": np.float32(3),
    "dtype of numpy": np.dtype("float32"),
    "date": datetime.datetime(2020, 6, 29),
    "partial": functools.partial(print, 1, end=""),
    "defaultdict": defaultdict(list, a=[1]),
    "deque": deque([1, 2]),
    "path": Path("/a/b"),
    "logger": logging.getLogger("program"),
    "record": logging.LogRecord("a", 1, "b", 2, "c", None, None),
    "complex": 1j,
    "slice": slice(1, 2),
    "dtype": torch.float32,
    "device": torch.device("cpu"),
    "module": nn.Linear(2, 2),
    "sparse": torch.eye(2).to_sparse(),
    "exception": ValueError("x"),
}


def is_foreign(value):
    return isinstance(value, Placeholder) or (isinstance(value, type) and issubclass(value, Placeholder))


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_object_is_a_placeholder_and_tensors_beside_it_are_whole(name, round_trip):
    tensor = torch.arange(5.0)
    content = round_trip({"before": tensor, "it": FOREIGN[name], "list": [FOREIGN[name], 7], "after": tensor + 1})
    assert is_foreign(content["it"])
    assert is_foreign(content["list"][0])
    assert content["list"][1] == 7
    assert_same(content["before"], tensor)
    assert_same(content["after"], tensor + 1)


def test_a_class_of_a_program_that_is_not_installed_is_a_placeholder(round_trip, monkeypatch):
    module = types.ModuleType("mmengine_of_nobody.logging")

    class HistoryBuffer:
        def __init__(self):
            self.history, self.methods = np.arange(4.0), {"mean": self.mean}

        def mean(self):
            return 0

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    buffer = HistoryBuffer()
    real_save = torch.save

    def save(*args, **kwargs):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, module.__name__, module)
            patched.setitem(sys.modules, "mmengine_of_nobody", types.ModuleType("mmengine_of_nobody"))
            real_save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    content = round_trip({"message_hub": {"loss": buffer, buffer: "key"}, "state_dict": {"a": torch.ones(2)}})
    assert "mmengine_of_nobody" not in sys.modules
    loss, key = content["message_hub"]
    assert isinstance(content["message_hub"][loss], Placeholder)
    assert content["message_hub"][key] == "key"
    assert_same(content["state_dict"]["a"], torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16, torch.float8_e4m3fn])
def test_a_tensor_of_another_type_does_not_spoil_those_beside_it(dtype, tmp_path):
    torch.save({"a": torch.ones(2), "b": torch.ones(2).to(dtype), "c": torch.ones(3)}, tmp_path / "file.pth")
    content = read_torch_file(tmp_path / "file.pth")
    assert_same(content["a"], torch.ones(2))
    assert_same(content["c"], torch.ones(3))
    assert not isinstance(content["b"], torch.Tensor)


# --- files by hand ----------------------------------------------------------------------------------------------------


def zipped(content, data=bytes(64), **members):
    """The pickle `content` as a zip of torch; `data` is storage 0."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, entry in {"data.pkl": content, "data/0": data, "version": b"3", **members}.items():
            archive.writestr(f"archive/{name}", entry)
    return buffer.getvalue()


def legacy(content, data=bytes(64), *, itemsize=4):
    """The pickle `content` as a file of torch before 1.6; `data` is storage 0."""
    heads = [torch_file.MAGIC, 1001, {"little_endian": True}]
    storages = pickle.dumps(["0"], 2) + struct.pack("<q", len(data) // itemsize) + data
    if b"storage" not in content:
        storages = pickle.dumps([], 2)
    return b"".join(pickle.dumps(head, 2) for head in heads) + content + storages


def plain(value):
    return pickle.dumps(value, 2)[2:-1]


def name_of(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def pack(*entries):
    return b"(" + b"".join(entries) + b"t"


def call(function, *arguments):
    return function + pack(*arguments) + b"R"


def storage(dtype="FloatStorage", numel=16, key="0", *, no_view=()):
    entries = [plain("storage"), name_of("torch", dtype), plain(key), plain("cpu"), plain(numel), *no_view]
    return pack(*entries) + b"Q"


def view(of=None, offset=0, size=(16,), stride=(1,)):
    arguments = [of or storage(), plain(offset), plain(size), plain(stride), b"\x89", b"}"]
    return call(name_of("torch._utils", "_rebuild_tensor_v2"), *arguments)


def program(*opcodes):
    return b"\x80\x02" + b"".join(opcodes) + b"."


def harmless(path, *, seconds=10, mebibytes=64):
    """What reading did, in a process of its own: ``read`` or ``refused``; it must not crash, hang or take memory."""

    def peak():
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def work(results):
        faulthandler.disable()
        ctypes.CDLL(None).malloc_trim(0)  # so that growth is seen, and not taken from what earlier tests left
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        limit = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0]) + 2**31
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = peak()
        try:
            read_torch_file(path)
            result = "read"
        except UserError as error:
            result = "refused" if str(path) in str(error) and "\n" not in str(error) else str(error)
        except BaseException as error:
            result = repr(error)
        results.send((result, peak() - before))

    processes = multiprocessing.get_context("fork")
    ours, theirs = processes.Pipe(duplex=False)
    child = processes.Process(target=work, args=(theirs,))
    child.start()
    child.join(seconds)
    if child.is_alive():
        child.kill()
        child.join()
        pytest.fail(f"reading took longer than {seconds} s")
    assert child.exitcode == 0, f"reading ended with {child.exitcode}"
    result, growth = ours.recv()
    assert result in ("read", "refused")
    assert growth < mebibytes, f"reading took {growth:.0f} MiB"
    return result


def test_files_by_hand_are_files(tmp_path):
    path, data = tmp_path / "file.pth", np.arange(16, dtype="<f4").tobytes()
    for wrap, of in ((zipped, storage()), (legacy, storage(no_view=[b"N"]))):
        path.write_bytes(wrap(program(view(of, offset=2, size=(2, 3), stride=(3, 1))), data))
        assert_same(torch.load(path, weights_only=True), torch.arange(2.0, 8).view(2, 3))
        assert_same(read_torch_file(path), torch.arange(2.0, 8).view(2, 3))
        assert harmless(path) == "read"


def test_a_view_of_a_storage_in_an_old_file_begins_where_it_says(tmp_path, refusal):
    path, data = tmp_path / "file.pth", np.arange(16, dtype="<f4").tobytes()

    def part(offset):
        return program(view(storage(no_view=[plain(("view", offset, 4))]), offset=1, size=(3,)))

    path.write_bytes(legacy(part(5), data))
    assert read_torch_file(path).tolist() == [6, 7, 8]
    for offset in (13, -2, 2**62):
        path.write_bytes(legacy(part(offset), data))
        assert str(path) in refusal(read_torch_file, path)


# --- nothing is executed ----------------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A file that must not appear, and a module `trap_module` that makes it when it is imported."""
    (tmp_path / "modules").mkdir()
    harm = tmp_path / "harm"
    (tmp_path / "modules" / "trap_module.py").write_text(f"open({str(harm)!r}, 'w').close()\ndef f(*_): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return harm


TRAPS = {
    "os.system": ("os", "system", "touch HARM"),
    "posix.system": ("posix", "system", "touch HARM"),
    "eval": ("builtins", "eval", "open('HARM', 'w').close()"),
    "exec": ("builtins", "exec", "open('HARM', 'w').close()"),
    "exec of Python 2": ("__builtin__", "eval", "open('HARM', 'w').close()"),
    "open": ("builtins", "open", "HARM", "w"),
    "call": ("subprocess", "call", ["touch", "HARM"]),
    "Popen": ("subprocess", "Popen", ["touch", "HARM"]),
    "import": ("importlib", "import_module", "trap_module"),
    "__import__": ("builtins", "__import__", "trap_module"),
    "import by name": ("trap_module", "f", 1),
    "run_path": ("runpy", "run_path", "MODULE"),
    "numpy": ("numpy.testing._private.utils", "runstring", "open('HARM', 'w').close()", {}),
    "torch.save": ("torch", "save", 1, "HARM"),
    "torch.load": ("torch", "load", "PICKLE", None, None),
    "torch.hub": ("torch.serialization", "load", "PICKLE"),
    "getattr": ("builtins", "getattr", 1, "real"),
    "copyreg": ("copyreg", "add_extension", "os", "system", 66),
}
# Ways to call a function: GLOBAL and REDUCE, INST, OBJ, STACK_GLOBAL and REDUCE.
CALLS = {
    "reduce": lambda module, name, *arguments: call(name_of(module, name), *arguments),
    "inst": lambda module, name, *a: b"(" + b"".join(a) + b"i" + name_of(module, name)[1:],
    "obj": lambda module, name, *a: b"(" + name_of(module, name) + b"".join(a) + b"o",
    "stack": lambda module, name, *a: plain(module) + plain(name) + b"\x93" + pack(*a) + b"R",
}


def trap_program(name, way, harm, folder):
    module, function, *arguments = TRAPS[name]
    names = {
        "HARM": str(harm),
        "MODULE": str(folder / "modules" / "trap_module.py"),
        "PICKLE": str(folder / "evil.pkl"),
    }

    def fill(value):
        if isinstance(value, list):
            return [fill(entry) for entry in value]
        for key, text in names.items():
            value = value.replace(key, text) if isinstance(value, str) else value
        return value

    return program(CALLS[way](module, function, *(plain(fill(argument)) for argument in arguments)))


@pytest.mark.parametrize("way", CALLS)
@pytest.mark.parametrize("name", TRAPS)
def test_a_function_that_a_file_names_is_not_called(name, way, trap, tmp_path):
    (tmp_path / "evil.pkl").write_bytes(program(call(name_of("os", "system"), plain(f"touch {trap}"))))
    content = trap_program(name, way, trap, tmp_path)
    path = tmp_path / "file.pth"
    for wrap in (zipped, legacy):
        path.write_bytes(wrap(content))
        modules = dict(sys.modules)
        assert isinstance(read_torch_file(path), Placeholder)
        assert sys.modules == modules
        path.write_bytes(wrap(content[:-1] + name_of("trap_module", "f") + b"b."))  # the result's state
        assert isinstance(read_torch_file(path), Placeholder)
        assert sys.modules == modules
        assert not trap.exists()


@pytest.mark.parametrize("way", ["reduce", "inst", "obj"])
@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "open", "call", "import", "import by name", "run_path"])
def test_the_traps_work(name, way, trap, tmp_path):
    content = trap_program(name, way, trap, tmp_path)
    child = multiprocessing.get_context("fork").Process(target=pickle.loads, args=(content,))
    child.start()
    child.join()
    assert trap.exists()


def test_a_plain_pickle_is_not_executed(trap, tmp_path, refusal):
    path = tmp_path / "file.pkl"
    path.write_bytes(trap_program("os.system", "reduce", trap, tmp_path))
    assert str(path) in refusal(read_torch_file, path)
    evil = pickle.loads(b"\x80\x02" + plain(torch_file.MAGIC) + b".")
    assert evil == torch_file.MAGIC
    for position in range(5):  # each of a legacy file's five pickles
        pickles = [plain(torch_file.MAGIC), plain(1001), plain({"little_endian": True}), b"N", plain([])]
        pickles[position] = trap_program("os.system", "reduce", trap, tmp_path)[2:-1]
        path.write_bytes(b"".join(program(content) for content in pickles))
        harmless(path)
        assert not trap.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "path.join"),
        ("torch", "serialization.os.system"),
        ("torch", "FloatStorage.__class__"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", "_rebuild_parameter.__call__"),
        ("collections", "OrderedDict.__init__"),
        ("builtins", "set.__class__"),
        ("collections", "OrderedDict.fromkeys"),
        ("gfl.tools.convert.torch_file", "Placeholder"),
        ("gfl.tools.convert.torch_file", "read_torch_file"),
        ("__main__", "x"),
        ("", ""),
    ],
)
def test_a_dotted_name_leads_nowhere(module, name, tmp_path):
    path = tmp_path / "file.pth"
    for wrap in (zipped, legacy):
        path.write_bytes(wrap(program(plain(module), plain(name), b"\x93")))
        found = read_torch_file(path)
        assert issubclass(found, Placeholder)
        assert found is not Placeholder


def test_a_registered_extension_is_not_called(trap, tmp_path):
    copyreg.add_extension("os", "system", 0x42)
    try:
        for code in (b"\x82\x42", b"\x83\x42\x00", b"\x84\x42\x00\x00\x00"):  # EXT1, EXT2, EXT4
            for wrap in (zipped, legacy):
                (tmp_path / "file.pth").write_bytes(wrap(program(call(code, plain(f"touch {trap}")))))
                assert isinstance(read_torch_file(tmp_path / "file.pth"), Placeholder)
    finally:
        copyreg.remove_extension("os", "system", 0x42)
        copyreg.clear_extension_cache()
    assert not trap.exists()


REACHABLE = {
    **{f"{module}.{name}": name_of(module, name) for module, name in CONTAINERS},
    "OrderedDict()": name_of("collections", "OrderedDict") + b")R",
    "set()": name_of("builtins", "set") + b")R",
    "{}": b"}",
    "[]": b"]",
    "()": b")",
    "None": b"N",
    "dtype": name_of("torch", "FloatStorage"),
    "_rebuild_tensor": name_of("torch._utils", "_rebuild_tensor"),
    "_rebuild_tensor_v2": name_of("torch._utils", "_rebuild_tensor_v2"),
    "_rebuild_parameter": name_of("torch._utils", "_rebuild_parameter"),
    "foreign class": name_of("foreign", "Class"),
    "foreign object": name_of("foreign", "Class") + b")R",
    "tensor": view(),
    "storage": storage(),
}
STATES = {
    "attribute": plain({"injected": 1}),
    "slots": pack(b"N", plain({"injected": 1})),
    "class": pack(b"N", b"}" + plain("__class__") + name_of("foreign", "Class") + b"s"),
    "call": pack(b"N", b"}" + plain("__call__") + name_of("foreign", "Class") + b"s"),
    "dict": pack(b"N", b"}" + plain("__dict__") + plain({"injected": 1}) + b"s"),
    "code": pack(b"N", b"}" + plain("__code__") + name_of("foreign", "Class") + b"s"),
    "setstate": pack(b"N", b"}" + plain("__setstate__") + name_of("foreign", "Class") + b"s"),
    "partial": pack(name_of("foreign", "Class"), b")", b"}", plain({"injected": 1})),
    "globals": plain({"__globals__": {}, "__reduce__": 1, "__init__": 2, "__new__": 3}),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("target", REACHABLE)
def test_state_reaches_nothing_outside_of_its_file(target, state, tmp_path):
    """BUILD sets attributes on whatever lies on the stack."""
    path, good = tmp_path / "file.pth", tmp_path / "good.pth"
    torch.save({"a": nn.Parameter(torch.ones(2)), "b": Foreign()}, good)
    watched = [torch_file, Placeholder, torch_file._Stored, torch_file._Storage, Placeholder.__call__]
    watched += [*CONTAINERS.values(), torch.dtype, torch.Tensor]
    before = [dict(vars(thing)) for thing in watched]
    containers, dtypes = dict(CONTAINERS), dict(DTYPES)
    for wrap in (zipped, legacy):
        path.write_bytes(wrap(program(REACHABLE[target], STATES[state], b"b")))
        with contextlib.suppress(UserError):
            read_torch_file(path)
    assert [dict(vars(thing)) for thing in watched] == before
    assert containers == CONTAINERS
    assert dtypes == DTYPES
    content = read_torch_file(good)
    assert_same(content["a"], torch.ones(2))
    assert not hasattr(content["b"], "injected")


# --- files made to harm -----------------------------------------------------------------------------------------------

HUGE = 2**62 + 16  # 4 bytes each: 64 in 64 bits


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
    harmless(path)


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
    value = {"meta": {"CLASSES": ("a", "b"), "log": Foreign()}, "state_dict": nn.Linear(30, 20).state_dict()}
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


@pytest.mark.parametrize("new", [True, False])
def test_a_truncated_file_is_refused(new, tmp_path, refusal):
    whole, path = example(new), tmp_path / "file.pth"
    lengths = {len(whole) * part // 40 for part in range(40)} | {1, 2, 3, 4, 5, 30, len(whole) - 22, len(whole) - 1}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        assert refusal(read_torch_file, path).startswith(f"{path} is truncated, damaged or no PyTorch file"), length
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
            harmless(path, mebibytes=2**20)


def torch_script(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


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
    assert refusal(read_torch_file, path) == f"{path} is truncated, damaged or no PyTorch file"


def test_torch_script_is_refused(tmp_path, refusal):
    torch_script(tmp_path / "file.pt")
    assert str(tmp_path / "file.pt") in refusal(read_torch_file, tmp_path / "file.pt")


def test_a_folder_and_a_missing_file_are_told(tmp_path, refusal):
    assert refusal(read_torch_file, tmp_path) == f"cannot read {tmp_path}: Is a directory"
    assert refusal(read_torch_file, tmp_path / "no") == f"cannot read {tmp_path / 'no'}: No such file or directory"
    assert "Not a directory" in refusal(read_torch_file, Path(__file__) / "file.pth")


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
    assert harmless(path) == "refused"


def test_members_of_strange_names_do_not_matter(tmp_path):
    path, modules = tmp_path / "file.pth", dict(sys.modules)
    strange = {"../../../evil": b"x", "/etc/evil": b"x", "data/../data.pkl": b"c", "code/x.py": b"raise SystemExit"}
    path.write_bytes(zipped(program(view()), **strange))
    assert_same(read_torch_file(path), torch.zeros(16))
    assert os.listdir(tmp_path) == ["file.pth"]
    assert sys.modules == modules


def test_a_name_that_occurs_twice_is_harmless(tmp_path):
    path = tmp_path / "file.pth"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for content in (program(view()), b"damaged", program(plain(7))):
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/data/0", bytes(64))
    assert harmless(path) in ("read", "refused")
