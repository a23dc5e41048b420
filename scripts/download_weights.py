"""Download a published checkpoint, check it and convert it to our format."""

import argparse
from pathlib import Path

from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Download a published checkpoint of mmdetection, check its sha256 and convert it to our format, as "
        "OUT/NAME.pt. Run it again to resume an interrupted download. Without a name: the list.",
        epilog="example: python scripts/download_weights.py gfl_r50_fpn_1x_coco",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a config of that list")
    parser.add_argument("--out", type=Path, help="the folder to write to (default: data/weights)")
    parser.add_argument("--server", metavar="URL", help="a mirror with the same paths as mmdetection's model zoo")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce(f"loading libraries for {ARGS.name}" if ARGS.name else "loading libraries")

import os

from gfl.checkpoint import read_checkpoint, write_torch_file
from gfl.common.errors import UserError, run
from gfl.common.files import writing
from gfl.common.progress import ByteBar, print_line
from gfl.common.published import FOLDER, PUBLISHED, SERVER
from gfl.common.text import one_line, shell_command
from gfl.tools.convert.import_file import import_external
from gfl.tools.prepare.download import Hash, fetch

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(args: argparse.Namespace) -> None:
    folder = args.out or FOLDER
    if args.name is None:
        print_list(folder)
        return
    if args.name not in PUBLISHED:
        raise UserError(f"no published checkpoint {one_line(args.name)}; there are {', '.join(PUBLISHED)}", code="name")
    out = folder / f"{args.name}.pt"
    if out.is_file():
        read_checkpoint(out)  # a damaged one is not taken for done
        print_line(f"{out} is there already")
    else:
        download(args.name, out, args.server or SERVER)
    print_line(f"next     {shell_command('python', 'eval.py', out)}")
    words = ["python", "train.py", "configs/finetune.yaml", f"model.weights={out}"]
    print_line(f"or       {shell_command(*words)} data.train.annotations=... (docs/own_data.md)")


def print_list(folder: Path) -> None:
    """Names, results and which are there."""
    width = max(map(len, PUBLISHED))
    print_line(f"{'NAME':<{width}}  AP on COCO val2017")
    for name, published in PUBLISHED.items():
        found = f"   in {folder}" if (folder / f"{name}.pt").is_file() else ""
        print_line(f"{name:<{width}}  {published.ap}{found}")
    print_line("next: python scripts/download_weights.py NAME")


def download(name: str, out: Path, server: str) -> None:
    """The original is kept only until it is converted."""
    published = PUBLISHED[name]
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    original = out.with_name(published.name)
    with ByteBar(original.name) as bar:
        fetch(
            f"{server.rstrip('/')}/{published.path}", original, Hash("sha256", published.sha256), on_progress=bar.show
        )
    write_torch_file(out, import_external(original, config=str(CONFIGS / f"{name}.yaml")))
    os.unlink(original)
    print_line(f"wrote    {out} ({out.stat().st_size / 2**20:.0f} MiB)")


if __name__ == "__main__":
    run(main, ARGS)
