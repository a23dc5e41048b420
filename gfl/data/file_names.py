"""File names of a json against the files that exist: missing ones, and the same file under another spelling."""

import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from gfl.common.errors import UserError
from gfl.common.file_kinds import is_url
from gfl.common.files import write_text
from gfl.common.text import format_value, list_some, shell_command
from gfl.data.coco_json import read_coco_json
from gfl.data.image_files import check_image_folder, missing_files

MAX_FILES = 2_000_000  # of a folder that are compared with the names of a json


class FileSpellings:
    """Files below a folder, found by names that differ in slashes, percent escapes, Unicode form, case or folder."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_base: dict[str, list[str]] = defaultdict(list)
        for file in _files_below(root):
            key = _spelling(file)
            self._by_name[key].append(file)
            self._by_base[key.rpartition("/")[2]].append(file)

    def find(self, name: str) -> str | None:
        """The one file that `name` can mean, relative to the folder; None if there is none, or more than one."""
        name = _path_of(name)
        key = _spelling(name)
        for files in (self._by_name.get(key, []), self._by_base.get(key.rpartition("/")[2], [])):
            if len(files) > 1:  # only letter case, or the folder, tells them apart
                files = [file for file in files if unicodedata.normalize("NFC", file) == _cleaned(name)]
            if len(files) == 1 and os.path.isfile(os.path.join(self._root, files[0])):  # and no link to nothing
                return files[0]
        return None


def find_spellings(root: str, missing: Iterable[str], present: Iterable[str] = ()) -> dict[str, str]:
    """Missing name -> the file below `root` that it can mean, unless another name means or is the same file."""
    spellings = FileSpellings(root)
    found = {name: file for name in missing if (file := spellings.find(name))}
    counts = Counter([*found.values(), *{_cleaned(name) for name in present}])
    return {name: file for name, file in found.items() if counts[file] == 1}


def _files_below(root: str) -> Iterable[str]:
    """Files relative to `root`; links to folders are followed, each folder once."""
    seen, count = set(), 0
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(folder)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        for file in files:
            yield os.path.relpath(os.path.join(folder, file), root).replace(os.sep, "/")
        if (count := count + len(files)) > MAX_FILES:
            return


def _path_of(name: str) -> str:
    """The path within an address of the web: of Label Studio's local files, the one that it serves."""
    if not is_url(name) and "/?" not in name:
        return name
    try:
        address = urlsplit(name)
    except ValueError:
        return name
    return parse_qs(address.query).get("d", [address.path])[0]


def _cleaned(name: str) -> str:
    """`name` with its slashes, percent escapes and Unicode form as files have them."""
    return unicodedata.normalize("NFC", unquote(name).replace("\\", "/").removeprefix("./").strip())


def _spelling(name: str) -> str:
    return _cleaned(name).casefold()


def check_files(root: str, file_names: np.ndarray, path: str) -> None:
    """Raises `UserError` for missing files: now rather than in the middle of an epoch."""
    check_image_folder(root, path)
    missing = missing_files(root, file_names)
    if not missing:
        return
    names = [str(file_names[i]) for i in missing]
    message = f"{path}: {len(missing)} of its {len(file_names)} images are not in {root}: {list_some(names)}"
    found = find_spellings(root, names, set(file_names.tolist()).difference(names))
    none_is_there = len(names) == len(file_names)  # otherwise no other folder has all of them
    if none_is_there and (folder := _folder_with_all(root, names, found.get(names[0], ""))):
        raise UserError(f"{message}; all of them are in {folder}: give that folder instead", code="missing_files")
    if not found:
        links = [name for name in names if os.path.islink(os.path.join(root, name))]
        message += f"; {len(links)} are links to files that are gone" if links else ""
        advice = f"add the files, or write a json without them: {write_clean_command(path, root)}"
        if none_is_there:
            advice = f"give the folder that its file names are relative to, instead of {root}"
        if any(map(is_url, names)):
            advice = f"download them into the folder; then this corrects the names: {fix_names_command(path, root)}"
        raise UserError(f"{message}; {advice}", code="missing_files")
    pairs = [f"{format_value(file)} for {format_value(name)}" for name, file in found.items()]
    raise UserError(
        f"{message}; but there is {list_some(pairs)}; this writes a json with the names that exist: "
        f"{fix_names_command(path, root)}",
        code="missing_files",
    )


def _folder_with_all(root: str, names: list[str], first: str) -> str:
    """The folder that has the files under these very names: the one above `root`, or one below it; "" if none has.

    Args:
        first: what `find_spellings` returned for the first of the names.
    """
    folders = [os.path.dirname(os.path.normpath(os.path.abspath(root)))]
    if first.endswith(f"/{names[0]}"):
        folders.append(os.path.join(root, first.removesuffix(f"/{names[0]}")))
    return next((folder for folder in folders if all(_exists_below(folder, name) for name in names)), "")


def fix_names_command(path: str, root: str) -> str:
    """The command that writes a json whose file names exist."""
    return _rewriting_command(path, root, "--fix-names", "names")


def write_clean_command(path: str, root: str) -> str:
    """The command that writes a json without what training refuses."""
    return _rewriting_command(path, root, "--write-clean", "clean")


def _rewriting_command(path: str, root: str, option: str, suffix: str) -> str:
    out = Path(path).with_name(f"{Path(path).stem}_{suffix}.json")
    return shell_command("python", "scripts/doctor.py", Path(path), Path(root), option, out)


def write_fixed_names(annotations: str, root: str, out: str) -> tuple[dict[str, str], list[str]]:
    """Write the json with file names that exist, where those that do not can only mean one file of the folder.

    Returns what was replaced, old name -> new name, and the names that are still missing. Raises `UserError` for a json
    or folder that cannot be used, and if `out` exists.
    """
    if os.path.lexists(out):
        raise UserError(f"--fix-names {out} exists; choose a new file")
    tree = read_coco_json(annotations)
    check_image_folder(root, annotations)
    entries = [(entry, name) for entry in tree["images"] if (name := _name_of(entry)) is not None]
    names = list(dict.fromkeys(name for _, name in entries))
    present = {name for name in names if _exists_below(root, name)}
    found = find_spellings(root, [name for name in names if name not in present], present)
    for entry, name in entries:
        entry["file_name"] = found.get(name, name)
    unknown = [name for name in names if name not in present and name not in found]
    write_text(Path(out), json.dumps(tree))
    return found, unknown


def _name_of(entry: Any) -> str | None:
    """The file name of an image entry; LVIS has a URL only."""
    name = entry.get("file_name", entry.get("coco_url")) if isinstance(entry, dict) else None
    return name if isinstance(name, str) else None


def _exists_below(root: str, name: str) -> bool:
    inside = not os.path.isabs(name) and ".." not in name.split("/") and "\0" not in name
    return inside and os.path.isfile(os.path.join(root, name))
