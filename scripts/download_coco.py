"""Download COCO 2017, check it and unpack it where the configs look for it."""

import argparse
from pathlib import Path

PARTS = ("train", "val", "annotations", "test")

from gfl.common.output import protect_output


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Download COCO 2017, check its md5 and unpack it. Run it again to resume an "
        "interrupted download; files that exist are not fetched again. The zip files are kept; delete them after "
        "unpacking.",
        epilog="example: python scripts/download_coco.py data/coco\n"
        "only a part: python scripts/download_coco.py --what val --what annotations data/coco",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="the destination; the configs expect data/coco")
    parser.add_argument(
        "--what",
        action="append",
        choices=PARTS,
        help="the part to download, repeatable (default: train, val and annotations, 27 GB as zip files)",
    )
    parser.add_argument("--server", metavar="URL", help="a mirror with the same paths as images.cocodataset.org")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()

from gfl.common.errors import run
from gfl.common.files import writing
from gfl.common.progress import ByteBar, print_line
from gfl.common.text import shell_command
from gfl.tools.prepare.download import COCO, COCO_SERVER, Archive, Hash, fetch, unpack


def main(args: argparse.Namespace) -> None:
    folder = args.folder
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for part in dict.fromkeys(args.what or PARTS[:3]):
        get(COCO[part], folder, args.server or COCO_SERVER)
    command = "python train.py configs/gfl_r50_fpn_1x_coco.yaml"
    if folder.resolve() != Path("data/coco").resolve():  # where the configs expect it
        command = f"{shell_command('ln', '-s', folder.resolve(), 'data/coco')} && {command}"
    print_line(f"next: {command}")


def get(archive: Archive, folder: Path, server: str) -> None:
    path = folder / archive.name
    url, expected = f"{server.rstrip('/')}/{archive.path}", Hash("md5", archive.md5)
    with ByteBar(archive.name) as bar:
        fetch(url, path, expected, growth=archive.growth, on_progress=bar.show)
    with ByteBar(f"{archive.name} unpacking") as bar:
        written = unpack(path, folder, on_progress=bar.show)
    print_line(f"{path}: complete, {written} files unpacked")


if __name__ == "__main__":
    run(main, ARGS)
