"""Files that `torch.save` wrote, of any origin and age, read without importing or running anything they name.

`torch.load(weights_only=True)` refuses a file with a single foreign class, and training programs store their loggers
and configs beside the weights. Here tensors and plain containers are read and everything else becomes an inert
placeholder. Tensors are mere descriptions while the pickle is read, out of reach of its instructions, and views of the
file afterwards, so that only what is used is ever in memory.
"""

import io
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gfl.common.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before PyTorch 1.6
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MAX_DEPTH = 100  # of tuples in tuples
CONTAINERS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # as Python 2 named it
}


class Placeholder:
    """Stands for an object of a foreign class, or for what a foreign function would have returned."""

    def __new__(cls, *_: Any, **__: Any) -> "Placeholder":
        return super().__new__(cls)

    def _ignore(self, *_: Any, **__: Any) -> "Placeholder":
        return self

    __init__ = lambda self, *_, **__: None  # noqa: E731
    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class _Storage(NamedTuple):
    dtype: Any  # a torch.dtype, or a placeholder for one that is not known here
    key: str
    numel: int
    start: int  # of a view of it, in files from before PyTorch 1.6


class _Stored(NamedTuple):
    """A tensor as the pickle describes it."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch_file(path: Path) -> Any:
    """What the file holds: plain containers and values, CPU tensors where dicts and lists hold them, `Placeholder`s.

    Raises `UserError` for a file that is missing, truncated or of another kind.
    """
    try:
        with open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _read_zip(path, memory) if memory[:4] == b"PK\x03\x04" else _read_legacy(memory)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # a damaged pickle can raise anything
        raise UserError(f"{path} is truncated, damaged or no PyTorch file") from None


def _bounded(code: bytes) -> Callable[["_Unpickler"], None]:
    """The instruction that makes a tuple, refusing one too deep: Python hashes them by recursion in C, and crashes."""
    load = pickle._Unpickler.dispatch[code[0]]

    def load_bounded(unpickler: "_Unpickler") -> None:
        load(unpickler)
        new, depths = unpickler.stack[-1], unpickler.depths
        depths[id(new)] = 1 + max((depths.get(id(entry), 0) for entry in new if type(entry) is tuple), default=0)
        if depths[id(new)] > MAX_DEPTH:
            raise ValueError("tuples nest too deep")

    return load_bounded


class _Unpickler(pickle._Unpickler):
    """Finds no class or function of anybody's.

    The standard library's unpickler in Python: the one in C allocates whatever memory a damaged file asks for, and
    its instructions cannot be replaced.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.dtypes: dict[str, torch.dtype] = {}  # of the storages by key
        self.placeholder = type("Placeholder", (Placeholder,), {})  # its own: the next file's is not what it made of it
        self.depths: dict[int, int] = {}  # of tuples by id

    def _ignore_state(self) -> None:
        """BUILD: attributes of foreign objects, and of an OrderedDict, are not needed."""
        self.stack.pop()

    def _read_bytearray(self) -> None:
        """BYTEARRAY8: as many bytes as there are; the original allocates what the file claims."""
        self.append(bytearray(self.read(struct.unpack("<Q", self.read(8))[0])))

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: _ignore_state,
        pickle.BYTEARRAY8[0]: _read_bytearray,
        **{code[0]: _bounded(code) for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)},
    }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _Stored(storage, offset, size, stride)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *_: data
        return CONTAINERS.get((module, name), self.placeholder)

    def persistent_load(self, pid: tuple) -> Any:
        if pid[0] == "module":  # a class and its source code
            return pid[1]
        _, dtype, key, _, numel, *view = pid
        self.dtypes[key] = dtype
        return _Storage(dtype, key, numel, view[0][1] if view and view[0] else 0)


def _read_zip(path: Path, memory: mmap.mmap) -> Any:
    """The format since PyTorch 1.6: an archive of one pickle and one uncompressed member per storage."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if members.keys() & {"constants.pkl", "version.pkl"} or "data.pkl" not in members:
            raise ValueError("TorchScript, or no PyTorch file")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("torch.save does not compress")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise ValueError("written on a big-endian machine")
        content = _Unpickler(io.BytesIO(archive.read(members["data.pkl"]))).load()

    def locate(storage: _Storage) -> int:
        member = members[f"data/{storage.key}"]
        if storage.numel * storage.dtype.itemsize != member.file_size:
            raise ValueError("a storage of another size than its member")
        name_length, extra_length = struct.unpack_from("<HH", memory, member.header_offset + 26)
        return member.header_offset + 30 + name_length + extra_length

    return _with_tensors(content, memory, locate)


def _read_legacy(memory: mmap.mmap) -> Any:
    """The format before: five pickles (magic, protocol, system, content, storage keys), then the storages' bytes."""
    magic, _, system = (_Unpickler(memory).load() for _ in range(3))
    if magic != MAGIC or not system["little_endian"]:
        raise ValueError("no PyTorch file, or written on a big-endian machine")
    unpickler = _Unpickler(memory)
    content, keys = unpickler.load(), _Unpickler(memory).load()
    starts, position = {}, memory.tell()
    for key in keys:
        (numel,) = struct.unpack_from("<q", memory, position)
        starts[key] = position + 8
        position += 8 + numel * unpickler.dtypes[key].itemsize
    return _with_tensors(content, memory, lambda storage: starts[storage.key])


def _with_tensors(content: Any, memory: mmap.mmap, locate: Callable[[_Storage], int]) -> Any:
    """`content` with tensors in place of their descriptions, wherever it nests dicts and lists."""
    top, seen = [content], set()
    unseen: list[Any] = [top]
    while unseen:
        container = unseen.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        entries: Iterable = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in list(entries):
            if isinstance(value, _Stored) and isinstance(value.storage.dtype, torch.dtype):
                container[key] = _tensor(value, memory, locate(value.storage))
            elif isinstance(value, (dict, list)):
                unseen.append(value)
    return top[0]


def _tensor(stored: _Stored, memory: mmap.mmap, start: int) -> Tensor:
    """A view of the file."""
    dtype, _, numel, first = stored.storage
    # torch.frombuffer checks this in 64 bits, which overflow.
    if start < 0 or numel < 0 or start + numel * dtype.itemsize > len(memory):
        raise ValueError("a storage beyond the file")
    flat = torch.frombuffer(memory, dtype=dtype, count=numel, offset=start) if numel else torch.empty(0, dtype=dtype)
    return flat.as_strided(stored.size, stored.stride, first + stored.offset)
