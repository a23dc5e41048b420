"""Files under another spelling of their name than the one given, and files of a folder that nothing names."""

import functools
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from gfl.data.image_files import is_image

# Of files that are neither images nor labels, and that tools leave among them.
AUXILIARY_SUFFIXES = (
    ".txt",
    ".xml",
    ".json",
    ".yaml",
    ".yml",
    ".csv",
    ".md",
    ".cache",
    ".npy",
    ".db",
    ".ini",
    ".names",
)


def spelling_key(name: str) -> str:
    """The same for names that differ in letter case or Unicode normal form only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Folders:
    """Listings of folders; each is read once."""

    def __init__(self) -> None:
        self.names: Callable[[Path], frozenset[str]] = functools.cache(_list_names)
        self._by_key: Callable[[Path], dict[str, list[str]]] = functools.cache(self._group)
        self._images: Callable[[Path], dict[str, list[str]]] = functools.cache(self._group_images)

    def _group(self, folder: Path) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in sorted(self.names(folder)):
            groups.setdefault(spelling_key(name), []).append(name)
        return groups

    def _group_images(self, folder: Path) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in sorted(filter(is_image, self.names(folder))):
            groups.setdefault(os.path.splitext(name)[0], []).append(name)
            groups.setdefault("\0" + spelling_key(os.path.splitext(name)[0]), []).append(name)
        return groups

    def same_name(self, path: Path) -> Path | None:
        """The file of that name, or the only one in its folder whose name differs in letter case or Unicode form."""
        if path.name in self.names(path.parent):
            return path
        found = self._by_key(path.parent).get(spelling_key(path.name), [])
        return path.parent / found[0] if len(found) == 1 else None

    def images_of(self, path: Path) -> list[Path]:
        """Images with the name of `path` and any suffix; with another letter case or Unicode form if there are none."""
        groups = self._images(path.parent)
        found = groups.get(path.name) or groups.get("\0" + spelling_key(path.name)) or []
        return [path.parent / name for name in found]

    def find(self, root: Path, name: str) -> Path | None:
        """The file or folder `name` below `root`, or the only one under another spelling of it.

        Tried are backslashes as slashes, percent escapes, letter case and Unicode forms.
        """
        if (root / name).exists():
            return root / name
        for variant in dict.fromkeys((name, name.replace("\\", "/"), unquote(name), unquote(name.replace("\\", "/")))):
            if ".." in variant.split("/") and ".." not in name.replace("\\", "/").split("/"):
                continue  # only an escape leads out of the folder
            path = root
            for part in Path(variant).parts:
                path = path / part if part == ".." else self.same_name(path / part)
                if path is None:
                    break
            if path is not None and path.exists():
                return path
        return None


def _list_names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def existing_end(name: str, root: Path) -> str:
    """The longest end of a path that exists below `root`; "" if there is none."""
    parts = name.replace("\\", "/").split("/")
    ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
    return next((end for end in ends if end and (root / end).exists()), "")


def walk(folder: Path) -> Iterator[Path]:
    """Files of a folder and its sub-folders, in order; leaves out hidden files, and links to a folder around them."""
    around = {os.fspath(folder): {os.path.realpath(folder)}}  # path of a folder -> where it and those above it are
    for path, folders, names in os.walk(folder, followlinks=True):
        above, below = around.pop(path), {}
        for name in sorted(name for name in folders if not name.startswith(".")):
            place = os.path.realpath(os.path.join(path, name))
            if place not in above:  # else it has itself as a sub-folder
                below[name] = above | {place}
        around |= {os.path.join(path, name): places for name, places in below.items()}
        folders[:] = below
        yield from (Path(path, name) for name in sorted(names) if not name.startswith("."))


def unknown_files(folder: Path) -> list[Path]:
    """Files among images that no suffix shows to be an image or a companion of one."""
    return [
        path for path in walk(folder) if not is_image(path) and path.suffix.lower() not in (*AUXILIARY_SUFFIXES, "")
    ]


def count_note(paths: Sequence[object], what: str) -> tuple[str, ...]:
    """A sentence on some files, with the first of them; nothing if there are none."""
    return (f"{len(paths)} {what}, the first: {paths[0]}",) if paths else ()


def folder_overview(root: Path) -> dict[str, tuple[int, int]]:
    """Folders at most two levels below `root` that have xml files or images: relative name -> their counts."""
    counts: dict[str, tuple[int, int]] = {}
    for folder in _shallow(root):
        names = _list_names(folder)
        xml = sum(name.lower().endswith(".xml") for name in names)
        images = sum(map(is_image, names))
        if xml or images:
            counts[folder.relative_to(root).as_posix()] = (xml, images)
    return counts


def _shallow(root: Path) -> Iterable[Path]:
    yield root
    for level in ("*", "*/*"):
        yield from sorted(path for path in root.glob(level) if path.is_dir() and not path.name.startswith("."))
