"""Commands that the tools print for the user to run next."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gfl.common.text import shell_command
from gfl.common.yaml_file import text_in_yaml
from gfl.model.published import FOLDER, download_advice

DOCTOR = ("python", "scripts/doctor.py")
CONFIG = "configs/finetune.yaml"
START = FOLDER / "gfl_r50_fpn_1x_coco.pt"  # its model.weights


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


def data_commands(written: Mapping[str, tuple[Path, Path]]) -> list[str]:
    """Lines with the commands that check and train on jsons, split -> json and image folder."""
    train = next((name for name in ("train", "trainval") if name in written), None)
    val = next((name for name in ("val", "valid", "validation", "test") if name in written), None)
    if not (train and val):
        return [f"next: {shell_command(*DOCTOR, *map(relative, paths))}" for paths in written.values()]
    first, second = (map(relative, written[name]) for name in (train, val))
    lines = [f"next: {shell_command(*DOCTOR, *first, '--val', *second, '--config', CONFIG)}"]
    overrides = []
    if not START.is_file():
        overrides.append("model.weights=none")
        advice = f"this starts from an ImageNet backbone; {download_advice(START)}, a better start"
        lines.append(f"note      no {START}: {advice}")
    splits = {"train": written[train], "val": written[val]}
    return [*lines, f"then: {training_command(CONFIG, splits, overrides)}"]
