"""The complete check of a data set before training, and its report for the terminal."""

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from gfl.common.findings import LEVELS, Finding, all_named, exit_code, table
from gfl.common.progress import progress_bar
from gfl.common.text import printable
from gfl.config import MAX_REG_MAX, Config, DataConfig
from gfl.config_file import config_to_dict
from gfl.data.coco import CocoData
from gfl.data.coco_json import read_coco_json
from gfl.data.image_files import check_image_folder
from gfl.evaluation.coco_eval import crowded_findings
from gfl.tools.doctor.annotations import check_annotations, compare_categories
from gfl.tools.doctor.copies import copy_findings, near_duplicate_findings, shared_image_findings
from gfl.tools.doctor.images import (
    InspectedImage,
    distinct_files,
    file_and_size,
    image_findings,
    inspect_images,
    unlisted_image_findings,
)
from gfl.training.data_fit import MAX_OBJECTS, WARN_SHARE, class_counts, class_findings, fit_findings, fit_statistics

MAX_CLASSES = 12  # in the terminal; the rarest ones if there are more

VERDICTS = ("fine", "training accepts it", "training would refuse it or stop")  # by exit code
Split = tuple[CocoData | None, dict[int, InspectedImage]]


def check_dataset(
    train: Sequence[str],
    val: Sequence[str] | None,
    config: Config,
    *,
    near_duplicates: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Check one or two splits against the rules of training and against the config.

    Args:
        train, val: path of the json and folder of the images.
        near_duplicates: also look for images that are in both splits but for compression, scale or brightness.
        progress: show a bar while images are decoded, on a terminal only.

    Returns what `format_report` takes, as plain values that json can hold.
    Raises `UserError` for a json that cannot be read at all, and for a folder that does not exist.
    """
    findings: dict[str, list[Finding]] = {}
    splits: dict[str, Split] = {}
    paths = {"train": train} | ({"val": val} if val else {})
    trees = {split: read_coco_json(path) for split, (path, _) in paths.items()}  # both first, to find typos early
    for path, root in paths.values():
        check_image_folder(root, path)
    unlisted = dict(
        zip(paths, unlisted_image_findings(list(trees.values()), [root for _, root in paths.values()]), strict=True)
    )
    listed = {split: len(tree["images"]) for split, tree in trees.items()}
    for split, (path, root) in paths.items():
        findings[split], data = check_annotations(trees.pop(split), path, root, split, config.data.ignore_classes)
        images = _inspect(data, split, config.data, near_duplicates, progress) if data else {}
        if data:
            findings[split] += class_findings(data, split) if len(data.labels) else []
            findings[split] += image_findings(data, images, config.data.bit_depth) + copy_findings(data, images)
            findings[split] += crowded_findings(data, config.eval)
        findings[split] += unlisted[split]
        splits[split] = data, images
    if val:
        findings["val"] += _compare(splits["train"], splits["val"], near_duplicates)
    fit = fit_statistics(splits["train"][0], config, max_boxes=MAX_OBJECTS) if splits["train"][0] else None
    findings["fit"] = fit_findings(fit, config) if fit else []
    return {
        "splits": {split: _summary(paths[split], listed[split], *splits[split]) for split in splits},
        "findings": {part: [vars(entry) for entry in entries] for part, entries in findings.items()},
        "fit": fit,
        "config": config_to_dict(config),
        "exit_code": exit_code(entry for entries in findings.values() for entry in entries),
    }


def _inspect(
    data: CocoData, split: str, config: DataConfig, with_hashes: bool, progress: bool
) -> dict[int, InspectedImage]:
    with progress_bar(total=len(distinct_files(data)), desc=split, unit="image", enabled=progress) as bar:
        return inspect_images(data, config=config, with_hashes=with_hashes, on_images=bar.update)


def _compare(train: Split, val: Split, near_duplicates: bool) -> list[Finding]:
    if not train[0] or not val[0]:
        return []
    near = near_duplicate_findings(*train, *val) if near_duplicates else []
    return compare_categories(train[0], val[0]) + near + shared_image_findings(*train, *val)


def _summary(
    paths: Sequence[str], listed: int, data: CocoData | None, images: dict[int, InspectedImage]
) -> dict[str, Any]:
    """The usable part of a split; `listed` is the number of images in the json."""
    usable = _usable(data, images) if data else np.zeros(0, bool)
    return {
        "annotations": paths[0],
        "folder": paths[1],
        "images_in_json": listed,
        "images": int(usable.sum()),
        "boxes": int(np.diff(data.offsets)[usable].sum()) if data else 0,
        "classes": class_counts(data, usable) if data else {},
    }


def _usable(data: CocoData, images: dict[int, InspectedImage]) -> np.ndarray:
    """(I,) whether training can read the image's file, which the json may name more than once."""
    unusable = {file_and_size(data, row) for row, image in images.items() if image.problem}
    return np.array([file_and_size(data, row) not in unusable for row in range(len(data))], bool)


def format_report(result: dict[str, Any], width: int | None = None, *, hint: bool = True) -> str:
    """The result of `check_dataset` as lines of at most `width` characters, by default the terminal's 80 to 140.

    Only the commands at the end are not broken into lines, so that they can be pasted.

    Args:
        hint: say how to get the names that did not fit.
    """
    width = width or min(max(shutil.get_terminal_size((100, 24)).columns, 80), 140)
    lines = []
    for name, split in result["splits"].items():
        entries = _to_findings(result["findings"][name])
        lines += _header(f"{name}  {printable(split['annotations'])}: ", _summary_line(split, entries), width)
        lines += table(entries, width) or ["  nothing found"]
        lines += [""]
    lines += _fit_lines(result, width) + _class_lines(result["splits"], width)
    entries = _to_findings([entry for part in result["findings"].values() for entry in part])
    errors, warnings = (sum(entry.level == level for entry in entries) for level in ("error", "warning"))
    code = result["exit_code"]
    lines.append(f"errors {errors}, warnings {warnings}: {VERDICTS[code]} (exit code {code})")
    if hint and not all(all_named(entry, width) for entry in entries):
        lines.append("all names: add --json FILE")
    for part in result["findings"].values():  # of each split the first: it may be all that is needed
        lines += [f"next: {printable(entry['command'])}" for entry in part if entry["command"]][:1]
    return "\n".join(lines)


def _header(start: str, summary: str, width: int) -> list[str]:
    return [start + summary] if len(start + summary) <= width else [start.rstrip(), "  " + summary]


def _summary_line(split: dict[str, Any], entries: list[Finding]) -> str:
    if not split["classes"]:
        return f"none of {split['images_in_json']:,} images is usable"
    rest = f"{split['boxes']:,} boxes, {len(split['classes'])} classes"
    if exit_code(entries) < LEVELS.index("error"):
        return f"{split['images']:,} images, {rest}"
    return f"usable: {split['images']:,} of {split['images_in_json']:,} images, with {rest}"


def _to_findings(entries: list[dict[str, Any]]) -> list[Finding]:
    return [Finding(**entry) for entry in entries]


def _fit_lines(result: dict[str, Any], width: int) -> list[str]:
    """How the training split fits the config."""
    fit, config = result["fit"], result["config"]
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
    ]
    if assigned:
        texts.append(
            f"points per object: {assigned['mean_points']:.1f} on average over {assigned['objects']:,} objects of "
            f"{assigned['images']:,} images"
        )
    lines = [head, *table(_to_findings(result["findings"]["fit"]), width)]
    lines += [line for text in texts for line in _wrapped(text, width)]
    if targets and targets["points"]:
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
    recommended, configured = targets["recommended_reg_max"], targets["reg_max"]
    # As the finding above: few sides beyond the range are no reason to change it.
    key = "reg_max" if recommended <= MAX_REG_MAX else "delta"
    verdict = f"raise model.head.{key}" if targets["share_beyond"] > WARN_SHARE else "enough"
    verdict = verdict if box == "general" else f"not used by model.head.box={box}"
    return f"reg_max {recommended} covers 99.9% of the sides; the config has {configured}: {verdict}"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")


def _class_lines(splits: dict[str, dict[str, Any]], width: int) -> list[str]:
    """Boxes per class, the rarest first."""
    names = sorted(splits["train"]["classes"], key=splits["train"]["classes"].get)
    if not names:
        return []
    label = min(max(len(name) for name in names[:MAX_CLASSES]), width - 30)
    more = f", the {MAX_CLASSES} rarest of {len(names)}" if len(names) > MAX_CLASSES else ""
    lines = [f"classes  boxes per class{more}", "  " + " " * label + "".join(f"{split:>10}" for split in splits)]
    for name in names[:MAX_CLASSES]:
        counts = [split["classes"].get(name) for split in splits.values()]
        cells = "".join(f"{'-' if count is None else format(count, ','):>10}" for count in counts)
        lines.append(f"  {printable(name)[:label]:<{label}}{cells}")
    return [*lines, ""]
