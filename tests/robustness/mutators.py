"""Mutations of inputs: hostile values and bytes, drawn from a `random.Random`, so that a seed repeats each case."""

import copy
import random
from typing import Any

import torch

# Text that no Python value is written as: nesting beyond the recursion limit, digits beyond int().
RAW = {
    "@deep list@": "[" * 5000 + "]" * 5000,
    "@deep map@": '{"a": ' * 5000 + "1" + "}" * 5000,
    "@half deep@": "[" * 700 + "]" * 700,
    "@digits@": "9" * 5000,
    "@minus zero@": "-0",
    "@float digits@": "1." + "3" * 5000,
    "@large exponent@": "1e" + "9" * 20,
}
NUMBERS = [0, 1, -1, -0.0, 0.5, 7, 2**31, 2**62, 2**63, -(2**63) - 1, 10**12, 10**400, 1e308, -1e308, 5e-324]
NOT_NUMBERS = [float("nan"), float("inf"), float("-inf"), True, False, None, "7", "1e-4", "nan"]
TEXTS = ["", " ", "text", "é 中 😀", "\ud800", "\udcff", "a\x00b", "\x1b[31mred", "a\nb", "x" * 5000, "../" * 300, "~"]
CONTAINERS = [[], {}, [[]], [None], {"a": {}}, [1, 2, 3, 4], {"": 0}, ["a", 1, None, {"b": []}], [0] * 1000]


def hostile(rng: random.Random) -> Any:
    """A value that some code will not expect."""
    kind = rng.choice([NUMBERS, NOT_NUMBERS, TEXTS, CONTAINERS, list(RAW)])
    return copy.deepcopy(rng.choice(kind))  # a copy, since it may be mutated further


def hostile_tensor(rng: random.Random, tensor: torch.Tensor) -> Any:
    """`tensor` in another shape, type, layout or device, or with impossible values."""
    changes = [
        lambda: tensor[None],
        lambda: tensor.flatten()[:-1].clone(),
        lambda: tensor.double(),
        lambda: tensor.half(),
        lambda: tensor.to(torch.complex64),
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else -tensor,
        lambda: torch.full_like(tensor, float("inf")) if tensor.is_floating_point() else -tensor,
        lambda: tensor.to_sparse() if tensor.dim() else tensor.bool(),
        lambda: tensor.to("meta"),
        lambda: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape),
        lambda: torch.empty(0),
        lambda: tensor.tolist() if tensor.numel() < 1000 else [],
        lambda: torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()),
    ]
    return rng.choice(changes)()


def mutate_tree(tree: Any, rng: random.Random) -> str:
    """Change nested lists and dicts in place at one to three spots; returns a description."""
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = list(spots(tree))
        if not found:
            break
        depth = rng.choice(sorted({len(path) for path, *_ in found}))  # by depth first, since most entries are leaves
        path, container, key = rng.choice([spot for spot in found if len(spot[0]) == depth])
        change = rng.choice(CHANGES)
        change(container, key, rng)
        done.append(f"{change.__name__.strip('_')} {'.'.join(map(str, path))[:80]}")
    return ", ".join(done)


def spots(tree: Any, path: tuple = (), seen: frozenset = frozenset()):
    """(path, container, key) of every entry; lists and dicts that contain themselves are entered once."""
    if not isinstance(tree, (list, dict)) or id(tree) in seen:
        return
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield (*path, key), tree, key
        yield from spots(tree[key], (*path, key), seen | {id(tree)})


def _replace(container: Any, key: Any, rng: random.Random) -> None:
    value = container[key]
    container[key] = hostile_tensor(rng, value) if isinstance(value, torch.Tensor) else hostile(rng)


def _replace_similar(container: Any, key: Any, rng: random.Random) -> None:
    """Replace an entry by a value of nearly the right type, as most mistakes do."""
    value = container[key]
    if isinstance(value, bool) or not isinstance(value, (int, float, str, list, dict)):
        return _replace(container, key, rng)
    if isinstance(value, (int, float)):
        container[key] = rng.choice([-value, value * 1000, str(value), [value], float(value), rng.choice(NUMBERS)])
    elif isinstance(value, str):
        container[key] = rng.choice(
            [value.upper(), value[:-1], value + "\x00", value + " ", [value], rng.choice(TEXTS)]
        )
    else:
        container[key] = rng.choice([type(value)(), {"0": value}, [value], str(value)[:200], list(value)])
    return None


def _drop(container: Any, key: Any, rng: random.Random) -> None:
    del container[key]


def _add(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, list):
        container.insert(key, rng.choice([hostile(rng), container[key]]))  # a duplicate
    else:
        container[rng.choice([f"{key}s", "id", "name", "unknown", "x" * 3000, "\ud800", ""])] = hostile(rng)


def _swap(container: Any, key: Any, rng: random.Random) -> None:
    other = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    container[key], container[other] = container[other], container[key]


CHANGES = [_replace, _replace, _replace_similar, _replace_similar, _drop, _add, _swap]


def with_raw(text: str) -> str:
    """`text`, json or YAML, with the keys of `RAW` replaced by its values."""
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw).replace(f"'{name}'", raw)
    return text


def mutate_bytes(content: bytes, rng: random.Random, *, near: int = 1000) -> tuple[bytes, str]:
    """Truncate, alter or re-encode `content`, half of the time within `near` bytes of an end; also a description."""
    place = rng.randrange(len(content))
    if rng.random() < 0.5:
        place = rng.choice([place % near, len(content) - 1 - place % near]) % len(content)
    span = rng.choice([1, 2, 8, 100])
    before, middle, after = content[:place], content[place : place + span], content[place + span :]
    kind, result = rng.choice(
        [
            ("cut off", before),
            ("cut off at the start", middle + after),
            ("empty", b""),
            ("span left out", before + after),
            ("span twice", before + middle * 2 + after),
            ("bytes at random", before + rng.randbytes(len(middle)) + after),
            ("bit flipped", before + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]),
            ("zeros", before + bytes(len(middle)) + after),
            ("bytes that are no UTF-8", before + rng.choice([b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80"]) + after),
            (
                "brackets",
                before + rng.choice([b"[", b"}", b'"', b"{", b"]", b":", b",", b"\t", b"&a ", b"*a "]) + after,
            ),
            ("digits", before + b"9" * 5000 + after),
            ("byte order mark", b"\xef\xbb\xbf" + content),
            ("line twice", before + middle + b"\n".join([after.partition(b"\n")[0]] * 3) + after),
        ]
    )
    return result, f"{kind} at {place}"


# YAML that mutations of trees and bytes seldom produce.
LAUGHS = "seed: 1\na0: &a0 [x, x, x, x, x, x, x, x, x]\n"
LAUGHS += "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))
SYNTAX = [
    "a: &a {x: 1}\nmodel: {<<: *a}",
    "optim: &o {lr: 0.1}\nmodel: *o",
    LAUGHS,
    LAUGHS + "optim: {lr: *a9}",
    LAUGHS + "data: {augment: [{name: Blur, p: *a9}]}",
    LAUGHS.replace("[x, x, x, x, x, x, x, x, x]", "{x: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n"),
    "data:\n  augment: &a [{name: Blur, p: *a}]",
    "data:\n  augment: [&a {name: Blur, p: *a}]",
    "data: &a {augment: [{name: Blur, p: *a}]}",
    "&a model: *a",
    "&a {model: *a}",
    "model: &m {backbone: *m}",
    "? [model, optim]\n: 1",
    "? {a: 1}\n: 1",
    "{[1]: 1, [1]: 2}",
    "optim: {lr: 2001-99-99}",
    "optim: {lr: 2001-01-01}",
    "seed: !!int forty",
    "seed: !!int ''",
    "optim: {lr: !!float x}",
    "data: {keep_empty: !!bool maybe}",
    "run_dir: !!timestamp soon",
    "run_dir: !!binary x",
    "run_dir: !!str [1]",
    "run_dir: !!python/name:os.system",
    "run_dir: !!python/object/apply:os.system [ls]",
    "optim: !!set {lr, batch}",
    "optim: !!omap [lr: 0.1]",
    "optim: !!pairs [lr: 0.1]",
    "data: {augment: [{name: Blur, p: !!set {a}}]}",
    "data: {augment: [{name: Blur, p: 2001-01-01}]}",
    "data: {augment: [{1: 2, name: Blur}]}",
    "data: {augment: [{name: Blur, 1: 2, z: 3}]}",
    "seed: 0x" + "f" * 6000,
    "seed: 0b" + "1" * 40000,
    "seed: " + "1:" * 3000 + "1",
    "seed: 9" * 2,
    "---\nseed: 1\n---\nseed: 2",
    "%YAML 9.9\n---\nseed: 1",
    "%TAG ! tag:x,2000:\n---\n!foo {seed: 1}",
    "seed: *nothing",
    "seed: |\n  7",
    "=: 1",
    "<<: 1",
    "<<: {seed: 3}",
    "<<: [{seed: 3}, {seed: 4}]\nseed: 5",
    "optim: {<<: {lr: 0.1}, <<: {lr: 0.2}}",
    "base: {lr: 1}",
    "base: config.yaml",
    "base: [config.yaml, other.yaml]",
    "base: ./../case/config.yaml",
    "base: other.yaml",
    "base: [other.yaml, other.yaml, other.yaml]",
    "base: .",
    "base: ./",
    "base: ''",
    'base: "a\\0b"',
    'base: "\\ud800"',
    "base: " + "x" * 300,
    "base: " + "x/" * 3000,
    "base: [[other.yaml]]",
    'run_dir: "a\\0b"',
    'run_dir: "\\ud800"',
    "run_dir: " + "x" * 300,
    'model: {backbone: {weights: "\\ud800"}}',
    "seed: 1\nseed: 2",
    "\ufeffseed: 1",
    "optim:\n\tlr: 1",
    "\x00",
    "seed: \x85 1",
]
