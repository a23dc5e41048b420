"""The list of images that training replaced by others (``data.on_bad_image: skip``)."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from gfl.common.distributed import gather_to_main
from gfl.common.files import write_json
from gfl.common.progress import print_line

FILE = "bad_images.json"  # in the run folder, if there were any
MAX_LINES = 20  # of the list that are printed


def report_bad_images(replaced: Mapping[str, str], run_dir: Path) -> None:
    """Print the images that any process replaced, now or before an interruption, and save them in the run folder.

    All processes call it, each with its own file names and reasons; only the main one prints and writes.
    """
    gathered = gather_to_main(dict(replaced))
    if gathered is None:
        return
    path, bad = run_dir / FILE, {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # none yet, or edited by hand
        bad |= json.loads(path.read_text(encoding="utf-8"))
    for part in gathered:
        bad |= part
    if not bad:
        return
    write_json(path, bad)
    print_line(f"bad      {len(bad)} training images were replaced by others (data.on_bad_image=skip): {path}")
    for reason in list(bad.values())[:MAX_LINES]:
        print_line(f"bad      {reason}")
