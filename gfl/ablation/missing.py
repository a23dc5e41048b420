"""What the runs of a study read and is not there, with the command that makes it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

from gfl.ablation.study import Run
from gfl.checkpoint import BEST, LAST, find_checkpoint
from gfl.common.errors import UserError
from gfl.common.published import download_advice
from gfl.common.text import list_some, printable
from gfl.config import Config
from gfl.config_file import load_config
from gfl.model.backbone import imagenet_weights

DEMO = "python train.py configs/gfl_r18_shapes.yaml"
# What the committed studies read, by file or folder, and what makes it; data come before what is trained on them.
COMMANDS = {
    "data/shapes": "python scripts/make_shapes.py",
    "data/shapes_sharp": "python scripts/make_shapes.py --out data/shapes_sharp --softness 0.25",
    "data/shapes_soft": "python scripts/make_shapes.py --out data/shapes_soft --softness 2",
    "data/shapes_large": "python scripts/make_shapes.py --out data/shapes_large --size 0.5 1",
    "data/coco": "python scripts/download_coco.py data/coco",
    "data/weights/resnext101_32x4d.pt": "python scripts/convert_checkpoint.py resnext101_32x4d-a5af3160.pth "
    "data/weights/resnext101_32x4d.pt",
    "runs/gfl_r18_shapes_start": "python train.py configs/gfl_r18_shapes_start.yaml",
    "runs/gfl_r18_shapes": DEMO,
}
START = "runs/gfl_r18_shapes_start/best.pt"  # of configs/scales/shapes.yaml
DEMOS = ("runs/gfl_r18_shapes/best.pt", "runs/demo/best.pt")  # the second of `make demo`
DOWNLOADED = "training does so; where there is no network, copy it to this place"
UNKNOWN = "see data/README.md, and the comments at the top of the study and of its scale"


class Missing(NamedTuple):
    """Files or folders that rows read and that are not there."""

    paths: tuple[str, ...]
    rows: tuple[str, ...]
    advice: str  # the command that makes them all, or where to read about them

    def __str__(self) -> str:
        return f"{', '.join(map(printable, self.paths))} (rows {list_some(self.rows)}): {self.advice}"


def find_missing(runs: Sequence[Run]) -> list[Missing]:
    """What `runs` will not find, in the order in which to make it."""
    found: dict[str, list[tuple[str, str]]] = {command: [] for command in COMMANDS.values()}
    for run in runs:
        for path in _missing_paths(run.config):
            found.setdefault(advice(path), []).append((path, run.row))
    return [_missing(pairs, command) for command, pairs in found.items() if pairs]


def find_downloads(runs: Sequence[Run]) -> list[Missing]:
    """The ImageNet weights that `runs` will download, which matters where there is no network."""
    found = [(path, run.row) for run in runs for path in _downloaded_paths(run.config)]
    return [_missing(found, DOWNLOADED)] if found else []


def _missing(paths_and_rows: list[tuple[str, str]], remedy: str) -> Missing:
    """With each path and each row once."""
    paths, rows = map(dict.fromkeys, zip(*paths_and_rows, strict=True))
    return Missing(tuple(paths), tuple(rows), remedy)


def check_missing(runs: Sequence[Run]) -> None:
    """Before hours of training, raise `UserError` for what is missing."""
    if missing := find_missing(runs):
        more = f"; and {len(missing) - 1} more, which --dry-run lists" if len(missing) > 1 else ""
        raise UserError(f"missing: {missing[0]}{more}", code="missing")


def _missing_paths(config: Config) -> Iterator[str]:
    data = config.data
    for split in (data.train, data.val):
        yield from (path for path in (split.annotations, split.images) if not Path(path).exists())
    of_run = (BEST, LAST)
    for path, names in (
        (config.model.weights, of_run),
        (_backbone_weights(config), ()),
        (config.loss.distill.teacher, of_run),
    ):
        if path not in ("none", "torchvision") and not find_checkpoint(Path(path), *names):
            yield path


def _downloaded_paths(config: Config) -> Iterator[str]:
    if _backbone_weights(config) != "torchvision" or not (weights := imagenet_weights(config.model.backbone.name)):
        return
    # Where torch keeps what it downloads; `torch.hub` itself, which runs code of others, is not used in this project.
    caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    home = Path(os.environ.get("TORCH_HOME", caches / "torch"))
    cached = home / "hub" / "checkpoints" / PurePosixPath(weights.url).name
    if not cached.exists():
        yield str(cached)


def _backbone_weights(config: Config) -> str:
    return config.model.backbone.weights if config.model.weights == "none" else "none"


def advice(path: str) -> str:
    """The command that makes `path`, or where to read about it."""
    for made, command in COMMANDS.items():
        if PurePath(path).is_relative_to(made):
            return command
    return download_advice(Path(path)) or UNKNOWN


def start_of_demo(scale: str) -> str:
    """The demo's weights, if the config `scale` starts from `START`, which is missing, and they are there; else ""."""
    if load_config(scale).model.backbone.weights != START or Path(START).exists():
        return ""
    return next((path for path in DEMOS if Path(path).exists()), "")
