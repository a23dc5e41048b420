"""Mutations of json and YAML beyond those of `mutators.py`: grafted subtrees, and what only text can say."""

import copy
import random
from typing import Any

from mutators import _spots

# Scalars as written, in place of a number, a switch or text.
SCALARS = [
    *("1e400", "-1e400", "1e-400", "-0", "-0.0", "0x7fffffffffffffffffff", "1_0", "0o17", "1:30", "1:59" * 200 + ".0"),
    *("true", "false", "True", "no", "3.0", "1e3", ".5", ".nan", "-.inf", "~", "''", "2001-01-01", "!!float 7"),
    *(r'"\0"', r'"\x1b[31mred"', r'"\ud800"', r'"\udfff\ud800"', r'"\U0010ffff"', r'"\N\_\L\P"', r'"\u202etxt"'),
    *(
        r'"\x85"',
        r'"a\nb"',
        r'"\u0000"',
        r'"\q"',
        r'"\u12"',
        '"\ufeff"',
        "'\u2028'",
        "\u202e",
        "é" * 3000,
        "*a",
        "&a 1",
    ),
]
BOMBS = [
    "".join(f"a{n}: &a{n} x\n" for n in range(60_000)),
    "".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else 1}]\n" for n in range(3000)),
    "[" + "?," * 100_000 + "]",
    "{" + "".join(f"{n * (2**61 - 1)}: 1," for n in range(20_000)) + "}",
    "seed: " + "1" + ":1" * 300_000,
    "seed: " + "1" + ":59" * 300 + ".0",
    "".join(f"%TAG !a{n}! tag:x,{n}:\n" for n in range(30_000)) + "---\nseed: 1",
    "run_dir: " + "x " * 450_000,
    "run_dir: '" + "x\n\n" * 450_000 + "'",
    "#\n" * 450_000,
    "base: [" + "other.yaml," * 20_000 + "]",
    "data: {augment: [" + "{name: Blur}," * 5000 + "]}",
    "data: {augment: [" + "{name: Compose, transforms: [" * 200 + "]}" * 200 + "]}",
    "x" * 2_000_000,
]


def graft(tree: Any, rng: random.Random) -> str:
    """Swap two subtrees of `tree`, or put a copy of one, or the same object, in the place of another."""
    (path, container, key), (other_path, other, other_key) = rng.sample(list(_spots(tree)), 2)
    if path[: len(other_path)] == other_path or other_path[: len(path)] == path:  # one within the other
        container[key] = copy.copy(other[other_key])
        return f"graft {other_path} at {path}"
    way = rng.choice(["swap", "copy", "share"])
    if way == "swap":
        container[key], other[other_key] = other[other_key], container[key]
    else:
        container[key] = copy.copy(other[other_key]) if way == "copy" else other[other_key]
    return f"{way} {path} {other_path}"


def mutate_text(text: str, rng: random.Random) -> tuple[str, str]:
    """YAML with a scalar replaced, or a line twice, there or elsewhere, so that a key is; also a description."""
    lines = text.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    if rng.random() < 0.3:
        target = rng.choice([number, rng.randrange(len(lines))])
        return "".join([*lines[:target], lines[number], *lines[target:]]), f"line {number} again at {target}"
    name, colon, value = lines[number].partition(": ")
    scalar = rng.choice(SCALARS)
    if colon and rng.random() < 0.8:
        lines[number] = f"{name}: {scalar}\n"
    else:
        indent = len(name) - len(name.lstrip())
        lines[number] = f"{' ' * indent}{scalar}: {value or '1'}\n"
    return "".join(lines), f"{scalar[:30]!r} in line {number}"
