"""Mutations of checkpoints beyond those of `mutators.py`: tensors, instructions of the pickle, false lengths."""

import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutators import _spots
from pickles import call, name_of, plain, storage, view

MARKER = "@injected@"
PRIME = 2**61 - 1  # numbers that differ by it have one hash
# What stands in the place of a value or a key.
INSTRUCTIONS = {
    "nested tuples": b")" + b"\x85" * 300_000,
    "nested lists": b"]" * 300_000 + b"a" * 299_999,
    "nested dicts": b"}N" * 100_000 + b"N" + b"s" * 100_000,
    "tuples that share tuples": b")" + b"2\x86" * 60,
    "key of nested tuples": b"})" + b"\x85" * 300_000 + b"Ns",
    "key of tuples that share tuples": b"})" + b"2\x86" * 60 + b"Ns",
    "keys with one hash": b"}(" + b"".join(plain(n * PRIME) + b"N" for n in range(30_000)) + b"u",
    "large text": b"\x8d" + struct.pack("<Q", 2**40),
    "large bytes": b"\x8e" + struct.pack("<Q", 2**33) + b"x",
    "large byte array": b"\x96" + struct.pack("<Q", 2**33) + b"x",
    "large number": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "many digits": b"\x8b" + struct.pack("<i", 200_000) + b"\x7f" * 200_000,
    "system": call(name_of("os", "system"), plain("exit")),
    "stride 0": view(storage(numel=1), size=(2**34,), stride=(0,)),
    "beyond the storage": view(size=(2**40,)),
    "negative stride": view(offset=4, size=(2,), stride=(-1,)),
    "no such storage": view(storage(key="no such"), size=(1,)),
    "many dimensions": view(size=(1,) * 100_000, stride=(1,) * 100_000),
    "a million values": b"](" + b"N" * 990_000 + b"e",
    "a million dicts": b"](" + b"}" * 990_000 + b"e",
    "storage": storage(),
    "text id": b"Px\n",
    "set": b"\x8f(K\x01\x90",
    "frozenset": b"(K\x01\x91",
    "unknown class": name_of("numpy", "ndarray"),
    "surrogate": b"X\x03\x00\x00\x00\xed\xa0\x80",
    "endless": b"]r\xfe\xff\xff\x7fj\xfe\xff\xff\x7fa",
}


def mutate_tensor(state: Any, rng: random.Random) -> str:
    """Replace a tensor anywhere in `state` by one of another kind."""
    path, container, key = rng.choice([spot for spot in _spots(state) if isinstance(spot[1][spot[2]], torch.Tensor)])
    tensor = container[key].detach().float()
    changes: dict[str, Callable[[], Any]] = {
        "expanded": lambda: torch.zeros(()).expand(tensor.shape),
        "huge": lambda: torch.zeros(()).expand(2**34),
        "overlapping": lambda: torch.zeros(tensor.numel() + 1).as_strided((tensor.numel(), 2), (1, 1)),
        "nested": lambda: torch.nested.nested_tensor([tensor.flatten(), tensor.flatten()[:1]]),
        "quantised": lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "quantised by channel": lambda: torch.quantize_per_channel(
            tensor.flatten()[None], torch.ones(1), torch.zeros(1), 0, torch.qint8
        ),
        "sparse": lambda: tensor.flatten().to_sparse(),
        "sparse rows": lambda: tensor.flatten()[None].to_sparse_csr(),
        "complex": lambda: torch.view_as_complex(torch.zeros(*tensor.shape, 2)).conj(),
        "float8": lambda: tensor.to(torch.float8_e4m3fn),
        "uint16": lambda: tensor.to(torch.uint16),
        "bool": lambda: tensor > 0,
        "empty": lambda: torch.empty(*tensor.shape, 0),
        "many dimensions": lambda: tensor.reshape(*tensor.shape, *[1] * 50),
        "not finite": lambda: torch.full_like(tensor, rng.choice([float("nan"), float("inf"), -float("inf")])),
        "minus zero": lambda: -torch.zeros_like(tensor),
        "smallest": lambda: torch.full_like(tensor, 1e-45),
        "largest": lambda: torch.full_like(tensor, 3.4e38),
        "transposed": lambda: tensor[..., None].transpose(0, -1).contiguous().transpose(0, -1)[..., 0],
        "part of another": lambda: torch.zeros(2, *tensor.shape)[1],
        "array": lambda: np.zeros(tensor.shape, np.float32),
        "number of numpy": lambda: np.float64(0.5),
        "subclass": lambda: torch.nn.Buffer(tensor),
    }
    name = rng.choice(list(changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some kinds are experimental
        container[key] = changes[name]()
    return f"{name} {'.'.join(map(str, path))[:80]}"


def mutate_keys(state: Any, rng: random.Random) -> str:
    """Another type for a key of any dict in `state`."""
    path, container, key = rng.choice([spot for spot in _spots(state) if isinstance(spot[1], dict)])
    new = rng.choice([0, -1, True, 0.0, -0.0, 1.0, float("nan"), 2**70, None, (key,), (1, (2,)), b"x", "\ud800", "a\n"])
    container[new] = container.pop(key)
    return f"key {new!r} for {'.'.join(map(str, path))[:80]}"


def mark(state: Any, rng: random.Random) -> str:
    """Put `MARKER` in the place of a value or of a key; `inject` replaces it."""
    path, container, key = rng.choice(list(_spots(state)))
    if isinstance(container, dict) and rng.random() < 0.3:
        container[MARKER] = container.pop(key)
    else:
        container[key] = MARKER
    return ".".join(map(str, path))[:80]


def inject(path: Path, rng: random.Random) -> str:
    """Replace `MARKER` in the pickle of the file by instructions."""
    name = rng.choice(list(INSTRUCTIONS))
    text = b"X" + struct.pack("<I", len(MARKER)) + MARKER.encode()
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            if member.endswith("data.pkl"):
                assert text in content
                content = content.replace(text, INSTRUCTIONS[name])
            archive.writestr(member, content)
    return name


def mutate_lengths(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """False lengths and places in the archive's directory, at its end, or in the pickle; also a description."""
    false = rng.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, rng.randrange(len(content))])
    kind = rng.choice(["directory", "header", "end", "pickle"])
    changed = bytearray(content)
    if kind == "pickle":
        text = rng.choice([match.start() for match in re.finditer(rb"[XTBJ]....", content[:40_000], re.DOTALL)])
        fields = [text + 1]
    else:
        mark, places = {
            "directory": (b"PK\1\2", (20, 24, 28, 42)),
            "header": (b"PK\3\4", (18, 22, 26)),
            "end": (b"PK\5\6", (8, 12, 16)),
        }[kind]
        starts = [match.start() for match in re.finditer(re.escape(mark), content)]
        start = rng.choice(starts)
        fields = [start + place for place in rng.sample(places, rng.choice([1, 2]))]
    for field in fields:
        struct.pack_into("<I", changed, field, false)
    return bytes(changed), f"{kind}: {false} at {fields}"
