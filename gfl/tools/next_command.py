"""Commands that the tools print for the user to run next."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gfl.common.text import shell_command
from gfl.common.yaml_file import text_in_yaml


def training_command(config: str, splits: Mapping[str, Sequence[Path]], overrides: Sequence[str] = ()) -> str:
    """The command that trains with `config` on splits, "train" and "val" -> json and image folder."""
    data = [
        f"data.{role}.{key}={text_in_yaml(str(relative(path)))}"
        for role, paths in splits.items()
        for key, path in zip(("annotations", "images"), paths, strict=True)
    ]
    return shell_command("python", "train.py", Path(config), *data, *overrides)


def relative(path: Path) -> Path:
    """The path relative to the current folder if it is below it."""
    below = os.path.relpath(path)
    return path if below.startswith("..") else Path(below)
