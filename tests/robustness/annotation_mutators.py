"""Mutations of annotations as text and as trees that `mutators` lacks, and the memory and time that reading takes.

A file is written by `write_json`, not by `json.dumps`, so that it may repeat keys, escape any character, and hold
numbers as no Python value is written.
"""

import json
import random
from collections.abc import Callable
from typing import Any

# Numbers by their text: beyond floats, below zero without being it, whole and not, of great length.
NUMBERS = ["1e400", "-1e400", "1E+999999", "-0", "-0.0", "0e5", "1e-400", "1.0", "7.0", "900.5", "1e2", "9e18"]
NUMBERS += ["9223372036854775808", "1" + "0" * 400, "0." + "0" * 400 + "1", "NaN", "Infinity", "-Infinity"]
NO_NUMBERS = ["true", "false", "null", '""', '"7"', '"-0"', "[7]", '{"7": 7}', "[]", "{}", "[[[]]]"]
TEXTS = [
    "\ud800",
    "\udfff\ud800",
    "\udcff.png",
    "\u202e",
    "\u2028",
    "\x85",
    "\x00",
    "\x7f",
    "\ufeff",
    "a\u0301",
    "\U0001f600",
]
TEXTS += ["../0.png", "/0.png", "./0.png", "0.png/", "0.png\x00.jpg", "CON", "0.PNG", "%30.png", "..", "", "x" * 70000]


class Raw(str):
    """Text that stands in the file as it is."""


def write_json(tree: Any, rng: random.Random, *, escape: float = 0.0, twice: float = 0.0) -> str:
    """`tree` as json; a share of the characters is escaped, and a share of the keys stands twice."""
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, str):
        return _quoted(tree, rng, escape)
    if isinstance(tree, dict):
        entries = [(key, value) for key, value in tree.items() for _ in range(1 + (rng.random() < twice))]
        rng.shuffle(entries) if twice else None
        inside = (
            f"{_quoted(key, rng, escape)}:{write_json(value, rng, escape=escape, twice=twice)}"
            for key, value in entries
        )
        return "{" + ",".join(inside) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(write_json(value, rng, escape=escape, twice=twice) for value in tree) + "]"
    return json.dumps(tree)


def _quoted(text: str, rng: random.Random, escape: float) -> str:
    if not escape:
        return json.dumps(text)
    units = text.encode("utf-16-be", "surrogatepass")
    codes = [int.from_bytes(units[start : start + 2], "big") for start in range(0, len(units), 2)]
    return '"' + "".join(f"\\u{c:04X}" if rng.random() < escape else json.dumps(chr(c))[1:-1] for c in codes) + '"'


def spots(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every entry."""
    found, waiting = [], [tree]
    while waiting:
        container = waiting.pop()
        for key in container if isinstance(container, dict) else range(len(container)):
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                waiting.append(container[key])
    return found


def _swap_subtrees(tree: Any, rng: random.Random) -> None:
    """Exchange two parts from anywhere, neither of which contains the other."""
    places = spots(tree)
    (first, key), (second, other) = rng.choice(places), rng.choice(places)
    inside = any(part is second for part, _ in spots([first[key]])) or first[key] is second
    outside = any(part is first for part, _ in spots([second[other]])) or second[other] is first
    if not inside and not outside:
        first[key], second[other] = second[other], first[key]


def _copy_subtree(tree: Any, rng: random.Random) -> None:
    """Put a copy of one part in the place of another."""
    places = spots(tree)
    (source, key), (target, other) = rng.choice(places), rng.choice(places)
    target[other] = json.loads(json.dumps(source[key]))


def _change_number(tree: Any, rng: random.Random) -> None:
    """Any number, id or size becomes another kind of number, or none."""
    places = [(c, k) for c, k in spots(tree) if isinstance(c[k], (int, float))]
    if places:
        container, key = rng.choice(places)
        container[key] = Raw(rng.choice(rng.choice([NUMBERS, NUMBERS, NO_NUMBERS])))


def _change_all(tree: Any, rng: random.Random) -> None:
    """A field of all entries at once, as a wrong export does it."""
    part = tree.get(rng.choice(["images", "annotations", "categories"]))
    entries = [entry for entry in part if isinstance(entry, dict)] if isinstance(part, list) else []
    keys = sorted({key for entry in entries for key in entry})
    if keys:
        key, change = rng.choice(keys), rng.choice([float, bool, str, lambda _: Raw(rng.choice(NUMBERS))])
        for entry in entries:
            if isinstance(entry.get(key), int) and not isinstance(entry[key], bool):
                entry[key] = change(entry[key])


def _change_text(tree: Any, rng: random.Random) -> None:
    places = [(c, k) for c, k in spots(tree) if isinstance(c[k], str) and not isinstance(c[k], Raw)]
    if places:
        container, key = rng.choice(places)
        text, place = rng.choice(TEXTS), rng.randrange(len(container[key]) + 1)
        container[key] = rng.choice([text, container[key][:place] + text + container[key][place:]])


def _rename_key(tree: Any, rng: random.Random) -> None:
    places = [(c, k) for c, k in spots(tree) if isinstance(c, dict)]
    container, key = rng.choice(places)
    container[rng.choice([*TEXTS[:10], key.upper(), f"{key} ", "id", "bbox", "images", "__class__"])] = container.pop(
        key
    )


def _repeat(tree: Any, rng: random.Random) -> None:
    """Thousands of equal entries."""
    places = [(c, k) for c, k in spots(tree) if isinstance(c[k], list) and c[k]]
    if places:
        container, key = rng.choice(places)
        entry = rng.choice(container[key])
        count = min(rng.choice([3, 300, 3000]), 500_000 // len(str(entry)))  # the cost should be the reader's
        container[key] = container[key] + [entry] * count


CHANGES: list[Callable[[Any, random.Random], None]] = [
    *(_swap_subtrees, _copy_subtree, _change_number, _change_number, _change_all, _change_text, _rename_key)
]


def mutate(tree: dict[str, Any], rng: random.Random) -> tuple[bytes, str]:
    """The json of `tree`, which is changed in place at one to four spots, and a description."""
    done = []
    for _ in range(rng.choice([1, 1, 2, 3, 4])):
        change = rng.choice(CHANGES)
        if not isinstance(tree, dict) or not spots(tree):
            break
        change(tree, rng)
        done.append(change.__name__.strip("_"))
    if rng.random() < 0.15 and isinstance(tree, dict):  # last, since the entries are one object
        _repeat(tree, rng)
        done.append("repeat")
    escape, twice = rng.choice([0, 0, 0.3, 1]), rng.choice([0, 0, 0, 0.05, 1])
    text = write_json(tree, rng, escape=escape, twice=twice)
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"])
    return text.encode(encoding, "replace"), ", ".join([*done, f"escaped {escape}", f"twice {twice}", encoding])
