"""The pickle in a file of `torch.save`, read in bounded time without importing or running anything it names.

Tensors are only described, out of reach of the pickle's instructions; gfl/common/torch_file.py makes them. Everything
that is neither a tensor nor plain data becomes an inert placeholder.
"""

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

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
MAX_INSTRUCTIONS = 1_000_000  # a checkpoint of ResNet-101 with AdamW has 100,000
TENSOR_INSTRUCTIONS = 20  # that a tensor counts for, since it takes more memory than other values


class Placeholder:
    """Stands for an object of an unknown class, or for what an unknown function would have returned."""

    __slots__ = ()

    def _ignore(self, *_: Any) -> None:
        """Instructions that fill an object change nothing."""

    __setitem__ = append = extend = add = _ignore


@dataclass(frozen=True, slots=True)
class StorageInfo:
    """A tensor's memory as the pickle describes it."""

    dtype: Any  # a torch.dtype, or `Placeholder` for an unsupported one
    key: str
    numel: int
    start: int  # where a view of it begins, in files from before PyTorch 1.6


@dataclass(frozen=True, slots=True, eq=False)
class TensorInfo:
    """A tensor as the pickle describes it, unchecked."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


def _simple_key(value: Any) -> Any:
    """`value` as the key of a dict; a placeholder if hashing it may take long or collide with others on purpose."""
    if type(value) is int and abs(value) < 2**60:
        return value
    return value if type(value) in (str, bytes, float, bool, type(None)) else Placeholder()


def _counted(load: Callable[["Unpickler"], None]) -> Callable[["Unpickler"], None]:
    """The instruction `load`, which counts."""

    def load_counted(unpickler: "Unpickler") -> None:
        unpickler.count(1)
        load(unpickler)

    return load_counted


def _with_simple_keys(code: bytes, keys: slice) -> Callable[["Unpickler"], None]:
    """The instruction `code`, which fills a dict from the stack; `keys` is where its keys lie there."""
    load = pickle._Unpickler.dispatch[code[0]]

    def load_with_simple_keys(unpickler: "Unpickler") -> None:
        unpickler.stack[keys] = map(_simple_key, unpickler.stack[keys])
        load(unpickler)

    return load_with_simple_keys


class Unpickler(pickle._Unpickler):
    """An unpickler that looks up no class or function but tensors and plain containers, and whose work is bounded.

    The standard library's unpickler in Python: the one in C allocates whatever memory a damaged file asks for, and
    its instructions cannot be replaced.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.storages: dict[str, StorageInfo] = {}
        self.left = MAX_INSTRUCTIONS

    def load(self) -> Any:
        """The next pickle of the file."""
        self.memo.clear()
        return super().load()

    def count(self, instructions: int) -> None:
        self.left -= instructions
        if self.left < 0:
            raise ValueError("more instructions than any checkpoint has")

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        return FUNCTIONS.get((module, name), Placeholder)

    def get_extension(self, code: int) -> None:
        self.append(Placeholder)

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is not tuple or not 2 <= len(pid) <= 6:
            raise ValueError("no description of a storage")
        if pid[0] == "module":  # a class and its source code
            return pid[1]
        _, dtype, key, _, numel, *view = pid
        if type(key) is not str or type(numel) is not int:
            raise ValueError("a storage without key or size")
        start = view[0][1] if view and view[0] else 0
        known = self.storages.setdefault(key, StorageInfo(dtype, key, numel, start))
        if (known.dtype, known.numel) != (dtype, numel):
            raise ValueError("a storage of two types or sizes")
        return StorageInfo(dtype, key, numel, start)

    def rebuild_tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorInfo:
        self.count(TENSOR_INSTRUCTIONS)
        return TensorInfo(storage, offset, size, stride)

    def rebuild_parameter(self, data: Any, *_: Any) -> Any:
        return data

    def rebuild_size(self, size: Any) -> Any:
        return size

    def rebuild_ordered_dict(self, pairs: Sequence[Any] = ()) -> OrderedDict:
        """Python 2 stored the entries as a list of pairs; later versions set them one by one."""
        self.count(len(pairs))
        return OrderedDict((_simple_key(key), value) for key, value in pairs)

    def _call(self) -> None:
        """REDUCE: call a function of `FUNCTIONS`, with no more arguments than it can take."""
        arguments, function = self.stack.pop(), self.stack.pop()
        known = function in FUNCTIONS.values()
        self.append(function(self, *arguments[:7]) if known else Placeholder())

    def _instantiate(self, cls: Any, arguments: Any) -> None:
        """INST, OBJ: an instance of a class of Python 2."""
        self.append(Placeholder())

    def _make_object(self) -> None:
        """NEWOBJ: in place of the arguments and the class."""
        self.stack[-2:] = [Placeholder()]

    def _make_object_ex(self) -> None:
        """NEWOBJ_EX: in place of the named arguments, too."""
        self.stack[-3:] = [Placeholder()]

    def _ignore_state(self) -> None:
        """BUILD: drop the attributes of an object; no tensor needs them."""
        self.stack.pop()

    def _make_set(self) -> None:
        """EMPTY_SET."""
        self.append(Placeholder())

    def _make_frozenset(self) -> None:
        """FROZENSET."""
        self.pop_mark()
        self.append(Placeholder())

    def _read_bytearray(self) -> None:
        """BYTEARRAY8: read the bytes that exist; the original allocates what the file claims."""
        self.append(bytearray(self.read(struct.unpack("<Q", self.read(8))[0])))

    def _remember(self) -> None:
        """PUT: its number is a key of the memo."""
        self.memo[_simple_key(int(self.readline()))] = self.stack[-1]

    dispatch = pickle._Unpickler.dispatch | {
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _make_object,
        pickle.NEWOBJ_EX[0]: _make_object_ex,
        pickle.BUILD[0]: _ignore_state,
        pickle.EMPTY_SET[0]: _make_set,
        pickle.FROZENSET[0]: _make_frozenset,
        pickle.BYTEARRAY8[0]: _read_bytearray,
        pickle.PUT[0]: _remember,
        pickle.SETITEM[0]: _with_simple_keys(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _with_simple_keys(pickle.SETITEMS, slice(0, None, 2)),
        pickle.DICT[0]: _with_simple_keys(pickle.DICT, slice(0, None, 2)),
    }
    dispatch = {code: _counted(load) for code, load in dispatch.items()}  # noqa: RUF012


FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor"): Unpickler.rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): Unpickler.rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): Unpickler.rebuild_parameter,
    ("torch", "Size"): Unpickler.rebuild_size,
    ("collections", "OrderedDict"): Unpickler.rebuild_ordered_dict,
}
