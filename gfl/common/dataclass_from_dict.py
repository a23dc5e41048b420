"""Dataclasses from plain data, strictly: unknown keys, other types and values out of range are errors with a name."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from gfl.common.errors import UserError
from gfl.common.text import describe, format_value, is_text

T = TypeVar("T")

MAX_VALUES, MAX_DEPTH = 100_000, 50  # of plain data; YAML aliases can make more than that of a few lines


class Check(NamedTuple):
    """What a value must be beyond its type, as ``Annotated[int, Check(...)]``."""

    wanted: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Check:
    return Check(f"at least {low}", lambda value: value >= low)


def between(low: float, high: float) -> Check:
    return Check(f"at least {low} and at most {high}", lambda value: low <= value <= high)


def above(low: float) -> Check:
    return Check(f"above {low}", lambda value: value > low)


def dataclass_from_dict(cls: type[T], tree: Any, source: str, prefix: str = "", root: type | None = None) -> T:
    """An instance of dataclass `cls` from nested mappings.

    Args:
        source: where `tree` comes from, named in errors.
        prefix: of the keys of `tree` in errors, such as ``optim.``.
        root: the dataclass that has `cls` at `prefix`, whose keys a wrong one may be; by default `cls`.

    Raises `UserError` for the first key, type or value that is wrong.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'config'} must be a section with keys, not {describe(tree)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {}
    for key, value in tree.items():
        if key not in hints:
            hint = _known_keys(str(key), hints, root or cls, prefix)
            raise UserError(f"{source}: unknown key {prefix}{format_value(key)}; {hint}")
        values[key] = _convert(hints[key], value, source, f"{prefix}{key}", root or cls)
    return cls(**values)


def _known_keys(key: str, siblings: Mapping[str, Any], root: type, prefix: str) -> str:
    """What an unknown key may be: one of its section, else one of the same or a similar name anywhere below `root`."""
    paths = _key_paths(root)
    same = [path for path in paths if path.rpartition(".")[2] == key.rpartition(".")[2]]
    close = [f"{prefix}{name}" for name in difflib.get_close_matches(key, siblings, n=1)]
    similar = difflib.get_close_matches(key, [path.rpartition(".")[2] for path in paths], n=1)
    found = same or close or [path for path in paths if similar and path.rpartition(".")[2] == similar[0]]
    return f"did you mean {' or '.join(found[:4])}?" if found else f"known here: {', '.join(siblings)}"


def _key_paths(cls: type, prefix: str = "") -> list[str]:
    """All keys of `cls` and of its sections, such as ``optim.lr``."""
    paths = []
    for name, hint in typing.get_type_hints(cls).items():
        paths.append(f"{prefix}{name}")
        if dataclasses.is_dataclass(hint):
            paths += _key_paths(hint, f"{prefix}{name}.")
    return paths


def _convert(hint: Any, value: Any, source: str, key: str, root: type) -> Any:
    """`value` as the type `hint`; the only conversions are int to float and list to tuple."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _checked(_convert(args[0], value, source, key, root), args[1], source, key)
    if dataclasses.is_dataclass(hint):
        return dataclass_from_dict(hint, value, source, f"{key}.", root)
    if origin is Literal:
        allowed = f"one of {', '.join(map(str, args))}"
        return _checked(value, Check(allowed, lambda v: (type(v), v) in [(type(a), a) for a in args]), source, key)
    if origin is types.UnionType:  # a number or a list of them
        hint = next(arg for arg in args if isinstance(value, list) == (typing.get_origin(arg) is tuple))
        return _convert(hint, value, source, key, root)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{source}: {key} must be a list like [1, 2], not {describe(value)}")
        return tuple(_convert(args[0], entry, source, f"{key}[{index}]", root) for index, entry in enumerate(value))
    return _plain(dict if origin is dict else hint, value, source, key)


def _plain(hint: type, value: Any, source: str, key: str) -> Any:
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 10**300 else math.inf
    if type(value) is not hint:
        wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "text", dict: "a mapping"}[hint]
        raise UserError(f"{source}: {key} must be {wanted}, not {describe(value)}{_number_hint(hint, value)}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{source}: {key} must be finite, not {value}")
    if hint is int and abs(value) >= 2**63:
        raise UserError(f"{source}: {key} must be a whole number that fits into 63 bits, not {describe(value)}")
    if hint is str and not is_text(value):
        raise UserError(f"{source}: {key} must be text without control characters, not {describe(value)}")
    if hint is dict and not all(isinstance(entry, str) for entry in value):
        raise UserError(f"{source}: {key} must have text as its keys, not {describe(value)}")
    return value


def check_plain(tree: Any, source: str) -> None:
    """Raises `UserError` unless `tree` is numbers, text, lists and mappings, of a moderate size and depth."""
    stack, count = [("", tree, 0)], 0
    while stack:
        key, value, depth = stack.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise UserError(
                f"{source}: nested more than {MAX_DEPTH} levels deep, or more than {MAX_VALUES} values, or endless"
            )
        if isinstance(value, dict):
            stack += [(name, entry, depth + 1) for name, entry in value.items()]
            stack += [("a key", name, depth + 1) for name in value]
        elif isinstance(value, list):
            stack += [(key, entry, depth + 1) for entry in value]
        elif type(value) not in (str, int, float, bool, type(None)):
            raise UserError(
                f"{source}: {format_value(key)} is {describe(value)}, which no key takes; put text in quotes"
            )


def _checked(value: Any, check: Check, source: str, key: str) -> Any:
    if not check.holds(value):
        written = list(value) if isinstance(value, tuple) else value  # as in YAML
        raise UserError(f"{source}: {key} must be {check.wanted}, not {describe(written)}")
    return value


def _number_hint(hint: type, value: Any) -> str:
    """YAML reads ``1e-4`` as text; say how to write it."""
    if hint is not float or not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    mantissa, _, exponent = value.lower().partition("e")
    if not exponent:
        return f"; write {number}"
    return f"; YAML reads this as text, write {mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+}"
