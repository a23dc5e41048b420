"""The commands that scripts/to_coco.py prints, run in a folder that stands for a checkout with a tiny config."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from command_line import CONFIG, ENVIRONMENT, ROOT
from PIL import Image

FOLDER = "null #1"  # needs quotes of the shell and of YAML
WORDS = ("voc", FOLDER, "--images", "images", "--annotations", "annots", "--val-share", "0.3")
XML = (
    "<annotation><size><width>90</width><height>70</height></size><object><name>cat</name><bndbox>"
    "<xmin>5</xmin><ymin>5</ymin><xmax>60</xmax><ymax>60</ymax></bndbox></object></annotation>"
)


def write_checkout(folder: Path) -> None:
    """The commands, a tiny config for own data, and three images with xml files in FOLDER, without splits."""
    for name in ("scripts", "gfl", "train.py"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("configs", "bin", f"{FOLDER}/images", f"{FOLDER}/annots"):
        (folder / name).mkdir(parents=True)
    tiny = CONFIG.replace("EPOCHS", "1").replace("DATA", "none")
    (folder / "configs" / "own_data.yaml").write_text(f"{tiny}run_dir: run\n")
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    for name in ("a", "b", "c"):
        Image.new("RGB", (90, 70), (90, 60, 30)).save(folder / FOLDER / "images" / f"{name}.jpg")
        (folder / FOLDER / "annots" / f"{name}.xml").write_text(XML)


def run_as_printed(text: str, folder: Path) -> subprocess.CompletedProcess:
    environment = ENVIRONMENT | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(text, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def printed_commands(printed: str) -> list[str]:
    """The commands among printed lines."""
    lines = [line.partition(": ") for line in printed.splitlines()]
    return [text for kind, _, text in lines if kind in ("next", "then")]
