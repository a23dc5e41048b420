"""Images that are there twice: within a split and in both by their pixels, in both also nearly so."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from gfl.common.findings import Finding, finding_if_any
from gfl.common.text import shell_command
from gfl.data.coco import CocoData
from gfl.tools.doctor.images import InspectedImage
from gfl.tools.near_duplicates import nearest_duplicates


def copy_findings(data: CocoData, inspected: Mapping[int, InspectedImage]) -> list[Finding]:
    """Images of one split under several names."""
    copies = [" = ".join(names) for names in _names_by_digest(data, inspected).values() if len(names) > 1]
    return finding_if_any("warning", "images under several names", "--write-clean OUT.json --no-copies", copies)


def shared_image_findings(
    train: CocoData,
    train_images: Mapping[int, InspectedImage],
    val: CocoData,
    val_images: Mapping[int, InspectedImage],
) -> list[Finding]:
    """Images that are in both splits."""
    in_train, in_val = _names_by_digest(train, train_images), _names_by_digest(val, val_images)
    both = [f"{names[0]} = {in_train[digest][0]}" for digest, names in in_val.items() if digest in in_train]
    command = ""
    if len(both) < len(in_val):  # otherwise nothing would be left
        out = Path(val.annotations).with_name(f"{Path(val.annotations).stem}_unseen.json")
        words = ["python", "scripts/doctor.py", Path(val.annotations), Path(val.root), "--write-clean", out]
        command = shell_command(*words, "--no-copies", Path(train.annotations), Path(train.root))
    advice = "AP is too high; leave them out of one split"
    return finding_if_any("warning", "val images that are also in train", advice, both, command=command)


def near_duplicate_findings(
    train: CocoData,
    train_images: Mapping[int, InspectedImage],
    val: CocoData,
    val_images: Mapping[int, InspectedImage],
) -> list[Finding]:
    """Images of val that nearly equal one of train, by the hashes of `near_duplicates`; not those with its pixels."""
    digests = {image.digest for image in train_images.values()}
    rows = [row for row, image in val_images.items() if image.digest not in digests]
    train_rows = list(train_images)
    nearest = nearest_duplicates([val_images[row].hash for row in rows], [train_images[row].hash for row in train_rows])
    both = [
        f"{val.file_names[row]} = {train.file_names[train_rows[position]]}"
        for row, position in zip(rows, nearest, strict=True)
        if position is not None
    ]
    share = min(max(round(len(val) / (len(train) + len(val)), 2), 0.01), 0.99)
    words = ["python", "scripts/split.py", Path(train.annotations), Path(train.root)]
    words += ["--merge", Path(val.annotations), Path(val.root), "--val-share", f"{share:g}", "--near-duplicates"]
    advice = "AP is too high; divide anew, each with its duplicates on one side"
    what = "val images with a near duplicate in train"
    if not both:  # said, since it was asked for
        return [Finding("ok", 0, what, "")]
    return [Finding("warning", len(both), what, advice, tuple(both), command=shell_command(*words))]


def copied_names(
    data: CocoData, inspected: Mapping[int, InspectedImage], others: Mapping[int, InspectedImage]
) -> set[str]:
    """Names of the files whose pixels one of `others` has, or one with an earlier place in the json."""
    known = {image.digest for image in others.values() if image.digest}
    first = {digest: names[0] for digest, names in _names_by_digest(data, inspected).items() if digest not in known}
    names = {str(data.file_names[row]) for row, image in inspected.items() if image.digest}
    return names - set(first.values())


def _names_by_digest(data: CocoData, inspected: Mapping[int, InspectedImage]) -> dict[str, list[str]]:
    """Digest of the pixels -> names of the files, in the order of the json."""
    groups = defaultdict(list)
    for row, image in sorted(inspected.items()):
        if image.digest:
            groups[image.digest].append(str(data.file_names[row]))
    return groups
