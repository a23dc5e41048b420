"""Configs as YAML files that inherit and as overrides of a command line, and as plain data. Strict."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gfl.common.dataclass_from_dict import dataclass_from_dict
from gfl.common.errors import UserError
from gfl.common.files import write_text
from gfl.common.yaml_file import merge, parse_yaml, read_with_bases
from gfl.config import Config


def load_config(path: str | Path, overrides: Iterable[str] = (), *, source: str = "command line") -> Config:
    """Read a YAML file, the files it inherits from (`base`, relative to it) and ``section.key=value`` overrides.

    Args:
        source: where the overrides come from, named in errors.

    Raises `UserError` naming the file and key for anything missing, misspelt, of the wrong type or out of range.
    """
    tree = merge(_read_config(Path(path)), parse_overrides(overrides, source))
    return config_from_dict(tree, str(path))


def config_from_dict(tree: Mapping[str, Any], source: str) -> Config:
    """A `Config` from nested plain data such as `config_to_dict` returns; `source` is named in errors."""
    return dataclass_from_dict(Config, tree, source)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain data (dicts, lists, numbers, strings) that YAML can write and `config_from_dict` reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def save_config(config: Config, path: Path) -> None:
    """Write every key of the config as YAML that `load_config` reads."""
    write_text(path, yaml.safe_dump(config_to_dict(config), sort_keys=False))


def config_differences(before: Mapping[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """``{"optim.lr": (0.01, 0.02)}`` for every key in which `config` differs from the plain data `before`.

    Keys that are missing in `before`, since it is of an earlier version, have their defaults there.
    """

    def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in tree.items():
            entries |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        return entries

    old, new = flat(config_to_dict(Config())) | flat(before), flat(config_to_dict(config))
    return {key: (old[key], new[key]) for key in new if old[key] != new[key]}


def parse_overrides(overrides: Iterable[str], source: str = "command line") -> dict[str, Any]:
    """``["optim.lr=0.005"]`` -> ``{"optim": {"lr": 0.005}}``, checked against the known keys.

    One without "=" that ends in .yaml is a config laid over those before it.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals and override.endswith((".yaml", ".yml")):
            tree = merge(tree, _read_config(Path(override)))
            continue
        if not equals:
            raise UserError(f"{source}: {override!r} is not of the form section.key=value")
        nested: Any = parse_yaml(text, f"{source}: {override!r}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        dataclass_from_dict(Config, nested, source)
        tree = merge(tree, nested)
    return tree


def _read_config(path: Path) -> dict[str, Any]:
    return read_with_bases(path, lambda tree, source: dataclass_from_dict(Config, tree, source))
