"""The list of images that training replaced by others (``data.on_bad_image: skip``)."""

from collections.abc import Mapping
from pathlib import Path

from gfl.common.distributed import gather_to_main, is_main
from gfl.common.errors import UserError
from gfl.common.files import write_json
from gfl.common.progress import print_line

FILE = "bad_images.json"  # in the run folder, if there were any
MAX_LINES = 20  # of the list that are printed


def gather_bad_images(replaced: Mapping[str, str]) -> dict[str, str]:
    """The images that any process replaced, file name -> reason, on the main process; all processes call it."""
    return {name: reason for part in gather_to_main(dict(replaced)) or () for name, reason in part.items()}


def report_bad_images(replaced: Mapping[str, str], run_dir: Path) -> None:
    """Print the images that were replaced, and save them in the run folder; only the main process does."""
    if not replaced or not is_main():
        return
    path = run_dir / FILE
    print_line(f"bad      {len(replaced)} training images were replaced by others (data.on_bad_image=skip): {path}")
    try:
        write_json(path, dict(replaced))
    except UserError as error:  # the checkpoint is saved, and the list is printed
        print_line(f"warning  {error}")
    for reason in list(replaced.values())[:MAX_LINES]:
        print_line(f"bad      {reason}")
