"""The whole check of a data set before training, and its report for the terminal."""

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from gfl.common.findings import LEVELS, Finding, all_named, exit_code, table
from gfl.common.progress import progress_bar
from gfl.common.text import printable
from gfl.config import Config, config_to_dict
from gfl.data.coco import CocoData, check_files, read_coco_json
from gfl.tools.doctor.annotations import compare_categories, examine
from gfl.tools.doctor.images import Picture, look_at_all, picture_findings, shared_pictures
from gfl.training.data_fit import THOROUGH, class_counts, class_findings, fit_findings, fit_statistics

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

    Raises `UserError` for a json that cannot be read at all, and for a folder that is none.
    """
    findings: dict[str, list[Finding]] = {}
    splits: dict[str, Split] = {}
    paths = {"train": train} | ({"val": val} if val else {})
    trees = {split: read_coco_json(path) for split, (path, _) in paths.items()}  # a typing mistake shows at once
    for path, root in paths.values():
        check_files(root, np.array([]), path)
    listed = {split: len(tree["images"]) for split, tree in trees.items()}
    for split, (path, root) in paths.items():
        findings[split], data = examine(trees.pop(split), path, root, split)
        pictures = _decode(data, split, progress) if data else {}
        if data:
            findings[split] += class_findings(data, split) if len(data.labels) else []
            findings[split] += picture_findings(data, pictures)
        splits[split] = data, pictures
    if val:
        findings["val"] += _compare(splits["train"], splits["val"])
    fit = fit_statistics(splits["train"][0], config, max_boxes=THOROUGH) if splits["train"][0] else None
    findings["fit"] = fit_findings(fit, config) if fit else []
    return {
        "splits": {split: _summary(paths[split], listed[split], *splits[split]) for split in splits},
        "findings": {part: [vars(entry) for entry in entries] for part, entries in findings.items()},
        "fit": fit,
        "config": config_to_dict(config),
        "exit_code": exit_code(entry for entries in findings.values() for entry in entries),
    }


def _decode(data: CocoData, split: str, progress: bool) -> dict[int, Picture]:
    files = len(np.unique(data.file_names))
    with progress_bar(total=files, desc=split, unit="image", enabled=progress) as bar:
        return look_at_all(data, on_pictures=bar.update)


def _compare(train: Split, val: Split) -> list[Finding]:
    if not train[0] or not val[0]:
        return []
    return compare_categories(train[0], val[0]) + shared_pictures(*train, *val)


def _summary(paths: Sequence[str], listed: int, data: CocoData | None, pictures: dict[int, Picture]) -> dict[str, Any]:
    """The usable part of a split, of `listed` images in the json."""
    usable = _usable(data, pictures) if data else np.zeros(0, bool)
    return {
        "annotations": paths[0],
        "folder": paths[1],
        "images_in_json": listed,
        "images": int(usable.sum()),
        "boxes": int(np.diff(data.offsets)[usable].sum()) if data else 0,
        "classes": class_counts(data, usable) if data else {},
    }


def _usable(data: CocoData, pictures: dict[int, Picture]) -> np.ndarray:
    """(I,) whether training can read the image's file, which the json may name more than once."""
    unusable = [data.file_names[row] for row, picture in pictures.items() if picture.problem]
    return ~np.isin(data.file_names, unusable)


def report(checked: dict[str, Any], width: int | None = None, *, hint: bool = True) -> str:
    """What `check_up` returns as lines of at most `width` characters, by default the terminal's 80 to 140.

    Args:
        hint: tell how to get the names that there was no room for.
    """
    width = width or min(max(shutil.get_terminal_size((100, 24)).columns, 80), 140)
    lines = []
    for name, split in checked["splits"].items():
        entries = _restored(checked["findings"][name])
        lines += _header(f"{name}  {printable(split['annotations'])}: ", _figures(split, entries), width)
        lines += table(entries, width) or ["  nothing to remark"]
        lines += [""]
    lines += _fit_lines(checked, width) + _class_lines(checked["splits"], width)
    entries = _restored([entry for part in checked["findings"].values() for entry in part])
    errors, warnings = (sum(entry.level == level for entry in entries) for level in ("error", "warning"))
    code = checked["exit_code"]
    lines.append(f"errors {errors}, warnings {warnings}: {VERDICTS[code]} (exit code {code})")
    if hint and not all(all_named(entry, width) for entry in entries):
        lines.append("all names: add --json FILE")
    return "\n".join(lines)


def _header(start: str, figures: str, width: int) -> list[str]:
    return [start + figures] if len(start + figures) <= width else [start.rstrip(), "  " + figures]


def _figures(split: dict[str, Any], entries: list[Finding]) -> str:
    if not split["classes"]:
        return f"none of {split['images_in_json']:,} images is usable"
    rest = f"{split['boxes']:,} boxes, {len(split['classes'])} classes"
    if exit_code(entries) < LEVELS.index("error"):
        return f"{split['images']:,} images, {rest}"
    return f"usable: {split['images']:,} of {split['images_in_json']:,} images, with {rest}"


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
    head = f"fit  short side {side} and long side {data['long_side']} at most, assign.kind {config['assign']['kind']}"
    texts = [
        f"object sizes (square root of the area): median {middle:.0f} px, 5% under {low:.0f}, 5% over {high:.0f}",
        f"objects under 8 px in the files: {sizes['under_8_px_in_file']:,}",
        f"points per object: {assigned['mean_points']:.1f} on average over {assigned['objects']:,} objects of "
        f"{assigned['images']:,} images",
    ]
    lines = [head, *table(_restored(checked["findings"]["fit"]), width)]
    lines += [line for text in texts for line in _wrapped(text, width)]
    if targets["points"]:
        beyond = {stride: f"{share:.2%}" for stride, share in targets["share_beyond_by_stride"].items()}
        rows = {
            "stride": targets["points_by_stride"].keys(),
            "points": [f"{count:,}" for count in targets["points_by_stride"].values()],
            "sides beyond reg_max": [beyond.get(stride, "-") for stride in targets["points_by_stride"]],
        }
        lines += ["  " + f"{name:<22}" + "".join(f"{value:>10}" for value in values) for name, values in rows.items()]
        lines += _wrapped(_reg_max_verdict(targets, config["model"]["head"]["box"]), width)
    return [*lines, ""]


def _reg_max_verdict(targets: dict[str, Any], box: str) -> str:
    wanted, present = targets["recommended_reg_max"], targets["reg_max"]
    verdict = "raise model.head.reg_max" if wanted > present else "enough"
    verdict = verdict if box == "general" else f"not used by model.head.box={box}"
    return f"reg_max {wanted} holds 99.9% of the sides; the config has {present}: {verdict}"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")


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
