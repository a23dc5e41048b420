"""Pickles and torch files assembled by hand, and a safe place to read hostile ones."""

import ctypes
import encodings.cp437  # noqa: F401 (zipfile needs it, and would import it during a test)
import faulthandler
import io
import multiprocessing
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import pytest

from gfl.common import torch_file
from gfl.common.errors import UserError
from gfl.common.torch_file import read_torch_file

HUGE = 2**62 + 16  # numbers of 4 bytes: 64 bytes if the product overflows 64 bits


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
    """The instructions that load a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def name_of(module, name):
    """The instruction that looks up a class or function."""
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def pack(*entries):
    """The instructions that load a tuple."""
    return b"(" + b"".join(entries) + b"t"


def call(function, *arguments):
    return function + pack(*arguments) + b"R"


def storage(dtype="FloatStorage", numel=16, key="0", *, no_view=()):
    entries = [plain("storage"), name_of("torch", dtype), plain(key), plain("cpu"), plain(numel), *no_view]
    return pack(*entries) + b"Q"


def view(of=None, offset=0, size=(16,), stride=(1,)):
    """The instructions that load a tensor."""
    arguments = [of or storage(), plain(offset), plain(size), plain(stride), b"\x89", b"}"]
    return call(name_of("torch._utils", "_rebuild_tensor_v2"), *arguments)


def make_pickle(*opcodes):
    """A complete pickle."""
    return b"\x80\x02" + b"".join(opcodes) + b"."


# Ways to call a function: GLOBAL and REDUCE, INST, OBJ, STACK_GLOBAL and REDUCE.
CALLS = {
    "reduce": lambda module, name, *arguments: call(name_of(module, name), *arguments),
    "inst": lambda module, name, *a: b"(" + b"".join(a) + b"i" + name_of(module, name)[1:],
    "obj": lambda module, name, *a: b"(" + name_of(module, name) + b"".join(a) + b"o",
    "stack": lambda module, name, *a: plain(module) + plain(name) + b"\x93" + pack(*a) + b"R",
}


def peak_mebibytes():
    """The most memory that this process has had since `restart_peak`."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def restart_peak():
    """Measure from now on; returns what the process has."""
    ctypes.CDLL(None).malloc_trim(0)  # so that growth is measured, not covered by what was freed before
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mebibytes()


def read_in_child(path, *, seconds=10, mebibytes=64):
    """Read `path` in a child process; returns "read" or "refused".

    Fails if the child crashes, hangs, raises anything but a `UserError` that names the file, or takes more memory.
    """

    def work(results):
        faulthandler.disable()
        limit = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0]) + 2**31
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = restart_peak()
        try:
            read_torch_file(path)
            result = "read"
        except UserError as error:
            result = "refused" if str(path) in str(error) and "\n" not in str(error) else str(error)
        except BaseException as error:
            result = repr(error)
        results.send((result, peak_mebibytes() - before))

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
