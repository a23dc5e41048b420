"""YAML, strictly, and files that inherit from others."""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from gfl.common.dataclass_from_dict import check_plain
from gfl.common.errors import UserError
from gfl.common.text import decode_text, describe, format_value, is_text, printable, short_repr

# So that PyYAML takes seconds at most. The names of 13,000 classes fit.
MAX_BYTES, MAX_NODES = 1_000_000, 50_000
MAX_DIGITS = 1000  # of a number
MAX_KEY_DIGITS = 18  # of a number as a key: larger ones can be chosen to have one hash


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, or nothing; raises `UserError` naming the file for any other."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes, so it is no config", code="too_large")
        tree = parse_yaml(decode_text(content), str(path))
    except OSError as error:
        raise UserError(f"cannot read config {format_value(path, 300)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections, not {describe(tree)}")
    return tree


def read_with_bases(path: Path, check: Callable[[dict[str, Any], str], object]) -> dict[str, Any]:
    """A YAML file laid over the files it inherits from: ``base``, a path or a list of them, relative to the file.

    Args:
        check: called with the keys of each file and its name, so that an error names the file that has the key.

    Raises `UserError` naming the file that is missing, is not a mapping or inherits from itself.
    """
    known: dict[str, dict[str, Any]] = {}  # files that share bases would be read again and again

    def read(path: Path, inheriting: tuple[str, ...]) -> dict[str, Any]:
        real = os.path.realpath(path)
        if real in inheriting:
            raise UserError(f"{path}: inherits from itself through `base`")
        if real not in known:
            tree = read_yaml(path)
            base = tree.pop("base", None)
            check(tree, str(path))
            inherited: dict[str, Any] = {}
            for name in _base_names(base, path):  # of several, a later one overrides the earlier
                inherited = merge(inherited, read(path.parent / name, (*inheriting, real)))
            known[real] = merge(inherited, tree)
        return known[real]

    return read(path, ())


def _base_names(base: Any, path: Path) -> list[str]:
    names = [] if base is None else base if isinstance(base, list) else [base]
    if not all(isinstance(name, str) and is_text(name) for name in names):
        raise UserError(f"{path}: base must be the path of a config or a list of them, not {describe(base)}")
    return names


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested plain data with the values of `over` in place of those of `under`."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_yaml(text: str, source: str) -> Any:
    """Plain data from YAML; raises `UserError` naming `source` for other text, and for anything but plain data."""
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {printable(' '.join(str(error).split()))}") from None
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: nested too deeply") from None
    check_plain(tree, source)
    return tree


def list_in_yaml(names: Sequence[str]) -> str:
    """A list of names as the command line takes it."""
    return yaml.safe_dump(list(names), default_flow_style=True, width=math.inf, allow_unicode=True).strip()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits, for which a key that occurs twice is an error, not silently the last one."""

    num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            problem = f"more than {MAX_NODES:,} values"
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                problem = "merge keys (<<) are not read here; write a config that both name as their base"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            numbers = [value for tag, value in keys if tag == "tag:yaml.org,2002:int"]
            if long := [value for value in numbers if len(value) > MAX_KEY_DIGITS]:
                problem = f"key {short_repr(long[0])} has more than {MAX_KEY_DIGITS} digits"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            if twice := [value for (_, value), count in keys.items() if count > 1]:
                problem = f"key {short_repr(twice[0])} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and len(node.value) > MAX_DIGITS:
                raise ValueError(f"more than {MAX_DIGITS} digits")
            return super().construct_object(node, deep)
        # What PyYAML's own conversions raise.
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            problem = f"{short_repr(node.value)} is not of the type {node.tag.rpartition(':')[-1]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
