"""Many ways in which a file names functions and changes state: `read_torch_file` executes nothing.

tests/tools/convert/test_hostile_files.py has one of each kind.
"""

import contextlib
import copyreg
import multiprocessing
import pickle
import sys

import pytest
import torch
from pickles import (
    CALLS,
    call,
    legacy,
    name_of,
    pack,
    plain,
    program,
    read_in_child,
    storage,
    view,
    zipped,
)
from torch import nn

from gfl.common.errors import UserError
from gfl.tools.convert import torch_file
from gfl.tools.convert.torch_file import CONTAINERS, DTYPES, Placeholder, read_torch_file

pytestmark = pytest.mark.robustness


class Unknown:
    def __init__(self):
        self.number, self.inner = 3, [self]


def assert_same(ours, theirs):
    assert type(ours) is torch.Tensor
    assert torch.equal(ours, theirs.detach())


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
        read_in_child(path)
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
    "unknown class": name_of("unknown", "Class"),
    "unknown object": name_of("unknown", "Class") + b")R",
    "tensor": view(),
    "storage": storage(),
}
STATES = {
    "attribute": plain({"injected": 1}),
    "slots": pack(b"N", plain({"injected": 1})),
    "class": pack(b"N", b"}" + plain("__class__") + name_of("unknown", "Class") + b"s"),
    "call": pack(b"N", b"}" + plain("__call__") + name_of("unknown", "Class") + b"s"),
    "dict": pack(b"N", b"}" + plain("__dict__") + plain({"injected": 1}) + b"s"),
    "code": pack(b"N", b"}" + plain("__code__") + name_of("unknown", "Class") + b"s"),
    "setstate": pack(b"N", b"}" + plain("__setstate__") + name_of("unknown", "Class") + b"s"),
    "partial": pack(name_of("unknown", "Class"), b")", b"}", plain({"injected": 1})),
    "globals": plain({"__globals__": {}, "__reduce__": 1, "__init__": 2, "__new__": 3}),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("target", REACHABLE)
def test_state_reaches_nothing_outside_of_its_file(target, state, tmp_path):
    """BUILD sets attributes on whatever lies on the stack."""
    path, good = tmp_path / "file.pth", tmp_path / "good.pth"
    torch.save({"a": nn.Parameter(torch.ones(2)), "b": Unknown()}, good)
    watched = [torch_file, Placeholder, torch_file.TensorInfo, torch_file.StorageInfo, Placeholder.__call__]
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
