"""Read any file of `torch.save`, old or new, without importing or running anything it names.

This is the only reader of checkpoints and weights, our own and those of others. `torch.load(weights_only=True)` refuses
a file with a single unknown class, which training codebases store beside the weights, and a hostile file can crash or
stall it. Here tensors and plain containers are read and everything else becomes an inert placeholder. Tensors are views
of the file, so that only what is used is loaded into memory.
"""

import io
import math
import mmap
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gfl.common.errors import UserError
from gfl.common.file_kinds import is_url, recognise_content, url_message
from gfl.common.files import ZIP_START
from gfl.common.torch_pickle import Placeholder, StorageInfo, TensorInfo, Unpickler

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before PyTorch 1.6
# A checkpoint of ResNet-101 with AdamW has 3,000 values in 5 levels. Where containers share others, they count again.
MAX_VALUES, MAX_DEPTH = 1_000_000, 100
MAX_DIMENSIONS = 64  # of a tensor, as in torch
MAX_SHARING = 4  # bytes of all tensors per byte of the file; averaged weights may share memory with others
MAX_DIRECTORY = 2**22  # bytes of the archive's directory: about 50,000 tensors


def read_torch_file(path: Path, *, verify: Callable[[Path], None] = lambda opened: None) -> Any:
    """The content of a file: plain values and containers with CPU tensors in them, `Placeholder`s for the rest.

    Also sets, and keys that are neither text nor numbers, become placeholders. Raises `UserError` for a file that is
    missing, truncated, of another kind, or beyond the limits above; and what `verify` raises for the path of the opened
    file, which stays the same if `path` is replaced meanwhile.
    """
    if is_url(path):
        raise UserError(url_message(path), code="url")
    memory = b""
    try:
        with open(path, "rb") as file:
            verify(Path(f"/dev/fd/{file.fileno()}"))
            if not os.fstat(file.fileno()).st_size:
                raise UserError(f"{path} is empty (0 bytes); get it again", code="damaged")
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return _read_zip(file, memory) if memory[:4] == ZIP_START else _read_legacy(memory)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", code="unreadable") from None
    except Exception:  # a damaged pickle can raise anything
        unknown = "damaged, not a PyTorch file, or holds more beside its tensors than any checkpoint does"
        raise UserError(f"{path} is {_other_kind(memory[:512]) or unknown}", code="damaged") from None


def _other_kind(start: bytes) -> str | None:
    """What a file is instead of PyTorch's, by its first bytes, and what to do; None if unknown."""
    if start[8:9] == b"{":
        return "a safetensors file; load it with safetensors.torch.load_file and save that with torch.save"
    kind = None if start[:4] == ZIP_START else recognise_content(start)
    return kind and f"{kind} instead of a PyTorch file; get it again"


def _read_zip(file: BinaryIO, memory: mmap.mmap) -> Any:
    """Read the format since PyTorch 1.6: an archive of one pickle and one uncompressed member per storage."""
    directory = zipfile._EndRecData(file)  # before zipfile reads all that the directory lists
    if not directory or directory[zipfile._ECD_SIZE] > MAX_DIRECTORY:
        raise ValueError("no archive, or one of more members than any checkpoint has")
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if members.keys() & {"constants.pkl", "version.pkl"} or "data.pkl" not in members:
            raise ValueError("TorchScript, or no PyTorch file")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("torch.save does not compress")
        if any(info.file_size > len(memory) for info in members.values()):
            raise ValueError("a member beyond the file")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise ValueError("written on a big-endian machine")
        content = Unpickler(io.BytesIO(archive.read(members["data.pkl"]))).load()

    def locate(storage: StorageInfo) -> int:
        member = members[f"data/{storage.key}"]
        if storage.numel * storage.dtype.itemsize != member.file_size:
            raise ValueError("a storage of another size than its member")
        name_length, extra_length = struct.unpack_from("<HH", memory, member.header_offset + 26)
        return member.header_offset + 30 + name_length + extra_length

    return _Tensors(memory, locate).insert(content)


def _read_legacy(memory: mmap.mmap) -> Any:
    """Read the older format: five pickles (magic, protocol, system, content, storage keys), then all storages."""
    unpickler = Unpickler(memory)
    magic, _, system = (unpickler.load() for _ in range(3))
    if magic != MAGIC or not system["little_endian"]:
        raise ValueError("no PyTorch file, or written on a big-endian machine")
    content, keys = unpickler.load(), unpickler.load()
    starts, position = {}, memory.tell()
    if not all(type(key) is str for key in keys):
        raise ValueError("storage keys that are no text")
    for key in keys:
        (numel,) = struct.unpack_from("<q", memory, position)
        starts[key] = position + 8
        position += 8 + numel * unpickler.storages[key].dtype.itemsize
    return _Tensors(memory, lambda storage: starts[storage.key]).insert(content)


class _Tensors:
    """The tensors of a file, views of its memory.

    Args:
        locate: the byte of the file where a storage begins.
    """

    def __init__(self, memory: mmap.mmap, locate: Callable[[StorageInfo], int]) -> None:
        self.memory, self.locate = memory, locate
        self.storages: dict[str, Tensor] = {}  # each as a flat tensor
        self.tensors: dict[TensorInfo, Tensor] = {}
        self.num_values = self.num_bytes = 0

    def insert(self, value: Any, depth: int = 0) -> Any:
        """`value` with tensors in place of their descriptions, and placeholders for those of unsupported types.

        Dicts and lists are changed in place. Raises `ValueError` beyond the limits of values, depth and sharing.
        """
        self.num_values += 1
        if self.num_values > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError("more values or levels than any checkpoint has, or endless")
        if isinstance(value, TensorInfo):
            return self._tensor(value)
        if type(value) is tuple:
            return tuple([self.insert(entry, depth + 1) for entry in value])
        if isinstance(value, (dict, list)):
            for key, entry in list(value.items() if isinstance(value, dict) else enumerate(value)):
                value[key] = self.insert(entry, depth + 1)
        return value

    def _tensor(self, info: TensorInfo) -> Tensor | Placeholder:
        storage, size = info.storage, info.size
        if not isinstance(storage.dtype, torch.dtype):
            return Placeholder()
        if len(size) > MAX_DIMENSIONS or not all(type(length) is int and 0 <= length < 2**63 for length in size):
            raise ValueError("a tensor of impossible size")
        numel = math.prod(size)
        self.num_bytes += numel * storage.dtype.itemsize
        if numel > storage.numel or self.num_bytes > MAX_SHARING * len(self.memory):
            raise ValueError("tensors of more numbers than the file")
        if storage.key not in self.storages:
            self.storages[storage.key] = self._storage(storage)
        if info not in self.tensors:
            flat = self.storages[storage.key]
            self.tensors[info] = flat.as_strided(size, info.stride, storage.start + info.offset)
        return self.tensors[info]

    def _storage(self, storage: StorageInfo) -> Tensor:
        start, dtype, numel = self.locate(storage), storage.dtype, storage.numel
        # torch.frombuffer checks this in 64 bits, which can overflow.
        if start < 0 or numel < 0 or start + numel * dtype.itemsize > len(self.memory):
            raise ValueError("a storage beyond the file")
        if numel == 0:  # which torch.frombuffer refuses
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self.memory, dtype=dtype, count=numel, offset=start)
