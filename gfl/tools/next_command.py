"""Commands that the tools print for the user to run next."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gfl.common.published import FOLDER, download_advice
from gfl.common.text import shell_command
from gfl.common.yaml_file import text_in_yaml

DOCTOR = ("python", "scripts/doctor.py")
FINETUNE, OWN_DATA = "configs/finetune.yaml", "configs/own_data.yaml"
START = FOLDER / "gfl_r50_fpn_1x_coco.pt"  # model.weights of the first


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


def config_for_new_data() -> str:
    """The config to train on new data with: from the published detector where it has been downloaded."""
    return FINETUNE if START.is_file() else OWN_DATA


def data_commands(written: Mapping[str, tuple[Path, Path]]) -> list[str]:
    """Lines with the commands that check and train on jsons, split -> json and image folder."""
    train = next((name for name in ("train", "trainval") if name in written), None)
    val = next((name for name in ("val", "valid", "validation", "test") if name in written), None)
    if not (train and val):
        return [f"next: {shell_command(*DOCTOR, *map(relative, paths))}" for paths in written.values()]
    first, second = (map(relative, written[name]) for name in (train, val))
    config, splits = config_for_new_data(), {"train": written[train], "val": written[val]}
    lines = [f"next: {shell_command(*DOCTOR, *first, '--val', *second, '--config', config)}"]
    lines.append(f"then: {training_command(config, splits)}")
    if config == OWN_DATA:
        lines.append(f"note      {FINETUNE} starts from a published detector: {download_advice(START)}")
    return lines
