"""Check that a change moved nothing: two checkouts train, evaluate and analyze to the same bits.

    python tests/robustness/compare_checkouts.py OLD NEW [--work FOLDER]

OLD and NEW are checkouts of this repository. With the same seeds both train detectors for 20 steps, with one process
and with two. Weights, momenta and logged losses must be equal to the bit, and so must `metrics.json`,
`detections.json` and `analysis.json`. NEW also evaluates and resumes what OLD has trained. Exit code 1 where anything
differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

CONFIG = """
model:
  backbone: {name: resnet18, weights: none, frozen_stages: -1, norm_eval: true}
  fpn: {channels: 64}
  head: {channels: 64, num_convs: 1}
data:
  train: {annotations: DATA/annotations/instances_train.json, images: DATA/train}
  val: {annotations: DATA/annotations/instances_val.json, images: DATA/val}
  short_side: [96, 128]
  long_side: 160
  workers: 1
optim: {name: adamw, lr: 0.001, base_batch: 4, batch: 4, accumulate: 2, epochs: 2, warmup_steps: 2, steps: [1]}
eval: {score_thresh: 0.0, max_detections: 20}
log: {interval: 1, images: 1}
"""
VARIANTS = {
    "gfl": [],
    "gfl_sgd_bf16": ["optim.name=sgd", "optim.lr=0.01", "optim.amp=bf16", "optim.clip_norm=10.0"],
    "gflv2": ["model.head.quality=dgqp"],
    "fcos": ["model.head.quality=centerness_branch", "model.head.box=dirac", "assign.kind=fcos"],
    "gaussian": ["model.head.box=gaussian"],
    "table1a_iou_branch": ["model.head.quality=iou_branch"],
}
STEPS = 20  # of 4 images: two epochs of 40 images


def run(checkout: Path, *words: object, processes: int = 1) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
    # The checkout stands first in the search path, so that its scripts import its own package.
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *map(str, words)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(command)}\n{done.stdout}{done.stderr}")


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Nested containers as {path: leaf}."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if entries is None:
        return {name: value}
    return {path: leaf for key, entry in entries for path, leaf in flatten(entry, f"{name}.{key}").items()}


def differing(old: Any, new: Any) -> list[str]:
    """Paths of the leaves that are not equal to the bit, or that only one side has."""
    old, new = flatten(old), flatten(new)

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return type(a) is type(b) and a == b

    return [path for path in old | new if path not in old or path not in new or not same(old[path], new[path])]


def read_checkpoint(path: Path) -> dict[str, Any]:
    state = torch.load(path, weights_only=True)
    return {key: state[key] for key in ("model", "optimizer", "progress")}


def read_losses(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "images_per_s"} for line in lines]


def compare(variant: str, processes: int, folder: Path, old: Path, new: Path) -> bool:
    words = ["train.py", folder / "tiny.yaml", *VARIANTS[variant]]
    runs = {side: folder / f"{variant}_{processes}_{side}" for side in ("old", "new")}
    for side, checkout in (("old", old), ("new", new)):
        run(checkout, *words, f"run_dir={runs[side]}", processes=processes)
        run(checkout, "eval.py", runs[side], "--out", runs[side] / "eval", processes=processes)
    found = {
        "weights": differing(*(read_checkpoint(runs[side] / "last.pt") for side in runs)),
        "losses": differing(*(read_losses(runs[side]) for side in runs)),
    }
    for name in ("metrics.json", "detections.json"):
        found[name] = differing(*(json.loads((runs[side] / "eval" / name).read_text()) for side in runs))
    return report(f"{variant}, {processes} process(es)", found)


def compare_analysis(variant: str, folder: Path, old: Path, new: Path) -> bool:
    """Both checkouts analyze the run that OLD has trained."""
    source = folder / f"{variant}_1_old"
    for side, checkout in (("old", old), ("new", new)):
        run(checkout, "scripts/analyze.py", source, "-o", folder / f"{variant}_analysis_{side}", "--score", 0)
    trees = (
        json.loads((folder / f"{variant}_analysis_{side}" / "analysis.json").read_text()) for side in ("old", "new")
    )
    return report(f"{variant}, analysis", {"analysis.json": differing(*trees)})


def compare_predictions(variant: str, folder: Path, old: Path, new: Path) -> bool:
    """Both checkouts predict on the (square) validation images."""
    source, trees = folder / f"{variant}_1_old", []
    for side, checkout in (("old", old), ("new", new)):
        out = folder / f"{variant}_predictions_{side}"
        run(checkout, "scripts/predict.py", source, folder / "data" / "val", "-o", out, "--score", 0.02)
        trees.append(json.loads((out / "predictions.json").read_text()))
    return report(f"{variant}, predictions", {"predictions.json": differing(*trees)})


def compare_resumed(variant: str, processes: int, folder: Path, old: Path, new: Path) -> bool:
    """NEW goes on where OLD has stopped after an epoch, and ends where OLD ends."""
    whole, resumed = folder / f"{variant}_{processes}_old", folder / f"{variant}_{processes}_resumed"
    words = ["train.py", folder / "tiny.yaml", *VARIANTS[variant], f"run_dir={resumed}"]
    run(old, *words, "optim.epochs=1", processes=processes)
    run(new, *words, "--resume", processes=processes)
    found = {
        "weights": differing(*(read_checkpoint(path / "last.pt") for path in (whole, resumed))),
        "losses": differing(read_losses(whole), read_losses(resumed)),
    }
    run(new, "eval.py", whole, "--out", folder / "old_by_new", processes=processes)
    trees = (json.loads((path / "metrics.json").read_text()) for path in (whole / "eval", folder / "old_by_new"))
    found["metrics.json of OLD's run by NEW"] = differing(*trees)
    return report(f"{variant}, {processes} process(es), resumed by NEW", found)


def report(name: str, found: dict[str, list[str]]) -> bool:
    for what, paths in found.items():
        print(f"{name}: {what} {'equal' if not paths else f'DIFFER in {len(paths)}, first {paths[:3]}'}", flush=True)
    return not any(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--work", type=Path, help="keep what is written there (default: a temporary folder)")
    args = parser.parse_args()
    old, new = args.old.resolve(), args.new.resolve()
    folder = args.work or Path(tempfile.mkdtemp())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        run(new, "scripts/make_shapes.py", "--out", folder / "data", "--train", 2 * STEPS, "--val", 8)
        (folder / "tiny.yaml").write_text(CONFIG.replace("DATA", str(folder / "data")))
        equal = [compare(variant, processes, folder, old, new) for variant in VARIANTS for processes in (1, 2)]
        equal += [compare_analysis(variant, folder, old, new) for variant in VARIANTS]
        equal += [compare_predictions(variant, folder, old, new) for variant in ("gfl", "fcos")]
        equal += [
            compare_resumed(variant, processes, folder, old, new) for variant, processes in (("gfl", 1), ("gflv2", 2))
        ]
    finally:
        if not args.work:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{sum(equal)} of {len(equal)} comparisons equal")
    sys.exit(not all(equal))


if __name__ == "__main__":
    main()
