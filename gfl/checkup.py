"""The whole check of a data set before training, and its report for the terminal."""

import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from gfl.config import Config, config_to_dict
from gfl.data.coco import CocoData, read_coco_json
from gfl.data.doctor import compare_categories, examine
from gfl.data.pictures import Picture, look_at_all, picture_findings, shared_pictures
from gfl.findings import LEVELS, Finding, exit_code, printable, table
from gfl.fit import THOROUGH, class_counts, class_findings, fit_findings, fit_statistics

MOST_CLASSES = 12  # in the terminal; of more, the rarest

VERDICTS = ("fine", "training takes it", "training refuses it or would stop on it")  # by exit code
Split = tuple[CocoData | None, dict[int, Picture]]


def check_up(
    train: Sequence[str], val: Sequence[str] | None, config: Config, *, progress: bool = False
) -> dict[str, Any]:
    """Everything about the data, as json can hold it; see `report`.

    Args:
        train, val: path of the json and folder of the images.
        progress: show a bar while images are decoded, on a terminal only.

    Raises `UserError` for a json that cannot be read at all.
    """
    findings: dict[str, list[Finding]] = {}
    splits: dict[str, Split] = {}
    paths = {"train": train} | ({"val": val} if val else {})
    trees = {split: read_coco_json(path) for split, (path, _) in paths.items()}  # a typing mistake shows at once
    for split, (path, root) in paths.items():
        findings[split], data = examine(trees.pop(split), path, root, split)
        pictures = _decode(data, split, progress) if data else {}
        if data:
            findings[split] += class_findings(data, split) if len(data.labels) else []
            findings[split] += picture_findings(data, pictures)
        splits[split] = data, pictures
    if val:
        findings["val"] += _compare(splits["train"], splits["val"])
    fit = fit_statistics(splits["train"][0], config, most_boxes=THOROUGH) if splits["train"][0] else None
    findings["fit"] = fit_findings(fit, config) if fit else []
    return {
        "splits": {split: _summary(paths[split], data) for split, (data, _) in splits.items()},
        "findings": {part: [vars(entry) for entry in entries] for part, entries in findings.items()},
        "fit": fit,
        "config": config_to_dict(config),
        "exit_code": exit_code(entry for entries in findings.values() for entry in entries),
    }


def _decode(data: CocoData, split: str, progress: bool) -> dict[int, Picture]:
    files = len(np.unique(data.file_names))
    with tqdm(total=files, desc=split, unit="image", disable=None if progress else True) as bar:  # None: terminal only
        return look_at_all(data, on_pictures=bar.update)


def _compare(train: Split, val: Split) -> list[Finding]:
    if not train[0] or not val[0]:
        return []
    return compare_categories(train[0], val[0]) + shared_pictures(*train, *val)


def _summary(paths: Sequence[str], data: CocoData | None) -> dict[str, Any]:
    """The usable part of a split."""
    return {
        "annotations": paths[0],
        "folder": paths[1],
        "images": len(data) if data else 0,
        "boxes": len(data.labels) if data else 0,
        "classes": class_counts(data) if data else {},
    }


def report(checked: dict[str, Any], width: int | None = None) -> str:
    """What `check_up` returns as lines of at most `width` characters, by default the terminal's 80 to 140."""
    width = width or min(max(shutil.get_terminal_size((100, 24)).columns, 80), 140)
    lines = []
    for name, split in checked["splits"].items():
        entries = checked["findings"][name]
        usable = "usable: " if exit_code(_restored(entries)) == LEVELS.index("error") else ""
        figures = f"{usable}{split['images']:,} images, {split['boxes']:,} boxes, {len(split['classes'])} classes"
        lines += [f"{name}  {printable(split['annotations'])}: {figures}"]
        lines += table(_restored(entries), width) or ["  nothing to remark"]
        lines += [""]
    lines += _fit_lines(checked, width) + _class_lines(checked["splits"], width)
    counts = [sum(e["level"] == level for part in checked["findings"].values() for e in part) for level in LEVELS]
    code = checked["exit_code"]
    return "\n".join([*lines, f"errors {counts[2]}, warnings {counts[1]}: {VERDICTS[code]} (exit code {code})"])


def _restored(entries: list[dict[str, Any]]) -> list[Finding]:
    return [Finding(**entry) for entry in entries]


def _fit_lines(checked: dict[str, Any], width: int) -> list[str]:
    """The training split against the config."""
    fit, config = checked["fit"], checked["config"]
    if not fit or not fit["sizes"]["objects"]:
        return []
    data, sizes, targets, assigned = config["data"], fit["sizes"], fit["targets"], fit["assigned"]
    side = data["eval_short_side"] or data["short_side"]
    side = max(side) if isinstance(side, list) else side
    low, middle, high = sizes["quantiles_px"].values()
    lines = [
        f"fit  short side {side} and long side {data['long_side']} at most, assign.kind {config['assign']['kind']}",
        *table(_restored(checked["findings"]["fit"]), width),
        f"  object sizes (square root of the area): median {middle:.0f} px, 5% under {low:.0f}, 5% over {high:.0f}",
        f"  objects under 8 px in the files: {sizes['under_8_px_in_file']:,}",
        f"  points per object: {assigned['mean_points']:.1f} on average over {assigned['objects']:,} objects of "
        f"{assigned['images']:,} images",
    ]
    if targets["points"]:
        beyond = {stride: f"{share:.2%}" for stride, share in targets["share_beyond_by_stride"].items()}
        rows = {
            "stride": targets["points_by_stride"].keys(),
            "points": [f"{count:,}" for count in targets["points_by_stride"].values()],
            "sides beyond reg_max": [beyond.get(stride, "-") for stride in targets["points_by_stride"]],
        }
        lines += ["  " + f"{name:<22}" + "".join(f"{value:>10}" for value in values) for name, values in rows.items()]
        wanted, present = targets["recommended_reg_max"], targets["reg_max"]
        lines.append(f"  reg_max {wanted} holds 99.9% of the sides; the config has {present}")
    return [*lines, ""]


def _class_lines(splits: dict[str, dict[str, Any]], width: int) -> list[str]:
    """Boxes per class, the rarest first."""
    names = sorted(splits["train"]["classes"], key=splits["train"]["classes"].get)
    if not names:
        return []
    label = min(max(len(name) for name in names[:MOST_CLASSES]), width - 30)
    more = f", the {MOST_CLASSES} rarest of {len(names)}" if len(names) > MOST_CLASSES else ""
    lines = [f"classes  boxes per class{more}", "  " + " " * label + "".join(f"{split:>10}" for split in splits)]
    for name in names[:MOST_CLASSES]:
        counts = [split["classes"].get(name) for split in splits.values()]
        cells = "".join(f"{'-' if count is None else format(count, ','):>10}" for count in counts)
        lines.append(f"  {printable(name)[:label]:<{label}}{cells}")
    return [*lines, ""]
