"""Files that `torch.save` wrote, of any origin and age, read without importing or running anything they name.

`torch.load(weights_only=True)` refuses a file with a single foreign class, and training programs store their loggers
and configs beside the weights. Here tensors and plain containers are read and everything else becomes an inert
placeholder. Tensors are views of the file on disk: only what is used is ever in memory.
"""

import io
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfl.errors import UserError

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


def read_torch_file(path: Path) -> Any:
    """What the file holds: tensors on the CPU, plain containers and values, `Placeholder`s for all else.

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


class _Unpickler(pickle.Unpickler):
    """Builds tensors through `load_storage` (dtype, key, number of elements) and finds no class or function at all."""

    def __init__(self, file: Any, load_storage: Callable[[torch.dtype, str, int], Tensor | None]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return partial(_rebuild_tensor)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return partial(_rebuild_parameter)
        # Everything is fresh for each call, so that a pickle that changes it changes nothing else.
        return CONTAINERS.get((module, name)) or type("Placeholder", (Placeholder,), {})

    def persistent_load(self, pid: tuple) -> tuple[Tensor | None, int]:
        """A storage, and where in it a view of it begins (files from before PyTorch 1.6)."""
        _, dtype, key, _, numel, *view = pid
        return self.load_storage(dtype, key, numel), view[0][1] if view and view[0] else 0


def _rebuild_tensor(storage: tuple, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor | None:
    flat, start = storage
    return None if flat is None else flat.as_strided(size, stride, start + offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _read_zip(path: Path, memory: mmap.mmap) -> Any:
    """The format since PyTorch 1.6: an archive of one pickle and one uncompressed member per storage."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if members.keys() & {"constants.pkl", "version.pkl"} or "data.pkl" not in members:
            raise ValueError("TorchScript, or no PyTorch file")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise ValueError("written on a big-endian machine")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("torch.save does not compress")

        def load_storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
            header = members[f"data/{key}"].header_offset
            name_length, extra_length = struct.unpack_from("<HH", memory, header + 26)
            return _view(memory, dtype, header + 30 + name_length + extra_length, numel)

        return _Unpickler(io.BytesIO(archive.read(members["data.pkl"])), load_storage).load()


def _read_legacy(memory: mmap.mmap) -> Any:
    """The format before: five pickles (magic, protocol, system, content, storage keys), then the storages' bytes.

    The content is read twice, since where a storage lies is known only after the types of those before it.
    """
    dtypes: dict[str, torch.dtype] = {}
    starts: dict[str, int] = {}

    def note_type(dtype: torch.dtype, key: str, numel: int) -> None:
        dtypes[key] = dtype

    def load_storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        return _view(memory, dtype, starts[key], numel)

    magic, _, system = (_Unpickler(memory, note_type).load() for _ in range(3))
    if magic != MAGIC or not system["little_endian"]:
        raise ValueError("no PyTorch file, or written on a big-endian machine")
    content_start = memory.tell()
    _Unpickler(memory, note_type).load()
    keys, position = _Unpickler(memory, note_type).load(), memory.tell()
    for key in keys:
        (numel,) = struct.unpack_from("<q", memory, position)
        starts[key] = position + 8
        position += 8 + numel * dtypes[key].itemsize
    memory.seek(content_start)
    return _Unpickler(memory, load_storage).load()


def _view(memory: mmap.mmap, dtype: torch.dtype, start: int, numel: int) -> Tensor:
    if numel == 0:
        return torch.empty(0, dtype=dtype)
    if numel < 0:
        raise ValueError("a storage of negative size")
    return torch.frombuffer(memory, dtype=dtype, count=numel, offset=start)
