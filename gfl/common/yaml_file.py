"""YAML, strictly."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from gfl.common.dataclass_from_dict import check_plain
from gfl.common.errors import UserError
from gfl.common.text import describe, format_value, short_repr


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, or nothing; raises `UserError` naming the file for any other."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"cannot read config {format_value(path, 300)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections, not {describe(tree)}")
    return tree


def parse_yaml(text: str, source: str) -> Any:
    """Plain data; raises `UserError` naming `source` for text that is not YAML, or of more than plain data."""
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: nested too deeply") from None
    check_plain(tree, source)
    return tree


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that a key that occurs twice is an error instead of silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                problem = "merge keys (<<) are not read here; write a config that both name as their base"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            if twice := [value for (_, value), count in keys.items() if count > 1]:
                problem = f"key {short_repr(twice[0])} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError):  # what PyYAML's own conversions run into
            problem = f"{short_repr(node.value)} is not of the type {node.tag.rpartition(':')[-1]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
