"""Read any file of `torch.save`, old or new, without importing or running anything it names.

`torch.load(weights_only=True)` refuses a file with a single unknown class, and training codebases store their loggers
and configs beside the weights. Here tensors and plain containers are read and everything else becomes an inert
placeholder. While the pickle is read, tensors are only described, out of reach of its instructions; afterwards they are
views of the file, so that only what is used is loaded into memory.
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
from gfl.common.files import ZIP_START
from gfl.data.image_errors import is_url, recognise_content, url_error

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
MAX_DEPTH = 100  # of nested tuples
CONTAINERS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # as Python 2 named it
}


class Placeholder:
    """Stands for an object of an unknown class, or for what an unknown function would have returned."""

    def __new__(cls, *_: Any, **__: Any) -> "Placeholder":
        return super().__new__(cls)

    def _ignore(self, *_: Any, **__: Any) -> "Placeholder":
        return self

    __init__ = lambda self, *_, **__: None  # noqa: E731
    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class StorageInfo(NamedTuple):
    """A tensor's memory as the pickle describes it."""

    dtype: Any  # a torch.dtype, or a placeholder for an unsupported one
    key: str
    numel: int
    start: int  # where a view of it begins, in files from before PyTorch 1.6


class TensorInfo(NamedTuple):
    """A tensor as the pickle describes it."""

    storage: StorageInfo
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch_file(path: Path) -> Any:
    """The content of a file: plain values, dicts and lists with CPU tensors in them, `Placeholder`s for the rest.

    Raises `UserError` for a file that is missing, truncated or of another kind.
    """
    if is_url(path):
        raise url_error(path)
    memory = b""
    try:
        with open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _read_zip(path, memory) if memory[:4] == ZIP_START else _read_legacy(memory)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", code="unreadable") from None
    except Exception:  # a damaged pickle can raise anything
        kind = _other_kind(memory[:512])
        raise UserError(f"{path} is {kind or 'truncated, damaged or not a PyTorch file'}", code="damaged") from None


def _other_kind(start: bytes) -> str | None:
    """What a file is instead of PyTorch's, by its first bytes, and what to do; None if unknown."""
    if start[8:9] == b"{":
        return "a safetensors file; load it with safetensors.torch.load_file and save that with torch.save"
    kind = None if start[:4] == ZIP_START else recognise_content(start)
    return kind and f"{kind} instead of a PyTorch file; get it again"


def _limit_tuple_depth(code: bytes) -> Callable[["_Unpickler"], None]:
    """The pickle instruction `code` for tuples, with a limit on nesting: hashing a deep one crashes Python."""
    load = pickle._Unpickler.dispatch[code[0]]

    def load_limited(unpickler: "_Unpickler") -> None:
        load(unpickler)
        new, depths = unpickler.stack[-1], unpickler.depths
        depths[id(new)] = 1 + max((depths.get(id(entry), 0) for entry in new if type(entry) is tuple), default=0)
        if depths[id(new)] > MAX_DEPTH:
            raise ValueError("tuples nest too deep")

    return load_limited


class _Unpickler(pickle._Unpickler):
    """An unpickler that looks up no class or function but tensors and plain containers.

    The standard library's unpickler in Python: the one in C allocates whatever memory a damaged file asks for, and
    its instructions cannot be replaced.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.dtypes: dict[str, torch.dtype] = {}  # by key of the storage
        self.placeholder = type("Placeholder", (Placeholder,), {})  # one class per file: changes to it end there
        self.depths: dict[int, int] = {}  # id of a tuple -> how deep it nests

    def _ignore_state(self) -> None:
        """BUILD: drop the attributes of an object; no tensor needs them."""
        self.stack.pop()

    def _read_bytearray(self) -> None:
        """BYTEARRAY8: read the bytes that exist; the original allocates what the file claims."""
        self.append(bytearray(self.read(struct.unpack("<Q", self.read(8))[0])))

    dispatch = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: _ignore_state,
        pickle.BYTEARRAY8[0]: _read_bytearray,
        **{code[0]: _limit_tuple_depth(code) for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)},
    }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: TensorInfo(storage, offset, size, stride)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *_: data
        return CONTAINERS.get((module, name), self.placeholder)

    def persistent_load(self, pid: tuple) -> Any:
        if pid[0] == "module":  # a class and its source code
            return pid[1]
        _, dtype, key, _, numel, *view = pid
        self.dtypes[key] = dtype
        return StorageInfo(dtype, key, numel, view[0][1] if view and view[0] else 0)


def _read_zip(path: Path, memory: mmap.mmap) -> Any:
    """Read the format since PyTorch 1.6: an archive of one pickle and one uncompressed member per storage."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if members.keys() & {"constants.pkl", "version.pkl"} or "data.pkl" not in members:
            raise ValueError("TorchScript, or no PyTorch file")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("torch.save does not compress")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise ValueError("written on a big-endian machine")
        content = _Unpickler(io.BytesIO(archive.read(members["data.pkl"]))).load()

    def locate(storage: StorageInfo) -> int:
        member = members[f"data/{storage.key}"]
        if storage.numel * storage.dtype.itemsize != member.file_size:
            raise ValueError("a storage of another size than its member")
        name_length, extra_length = struct.unpack_from("<HH", memory, member.header_offset + 26)
        return member.header_offset + 30 + name_length + extra_length

    return _build_tensors(content, memory, locate)


def _read_legacy(memory: mmap.mmap) -> Any:
    """Read the older format: five pickles (magic, protocol, system, content, storage keys), then all storages."""
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
    return _build_tensors(content, memory, lambda storage: starts[storage.key])


def _build_tensors(content: Any, memory: mmap.mmap, locate: Callable[[StorageInfo], int]) -> Any:
    """Replace descriptions by tensors in `content`, within nested dicts and lists."""
    top, seen = [content], set()
    unseen: list[Any] = [top]
    while unseen:
        container = unseen.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        entries: Iterable = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in list(entries):
            if isinstance(value, TensorInfo) and isinstance(value.storage.dtype, torch.dtype):
                container[key] = _build_tensor(value, memory, locate(value.storage))
            elif isinstance(value, (dict, list)):
                unseen.append(value)
    return top[0]


def _build_tensor(info: TensorInfo, memory: mmap.mmap, start: int) -> Tensor:
    """The described tensor as a view of the file, whose storage begins at byte `start`."""
    dtype, _, numel, first = info.storage
    # torch.frombuffer checks this in 64 bits, which can overflow.
    if start < 0 or numel < 0 or start + numel * dtype.itemsize > len(memory):
        raise ValueError("a storage beyond the file")
    flat = torch.frombuffer(memory, dtype=dtype, count=numel, offset=start) if numel else torch.empty(0, dtype=dtype)
    return flat.as_strided(info.size, info.stride, first + info.offset)
