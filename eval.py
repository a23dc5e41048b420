"""COCO metrics of a checkpoint, and its detections in COCO's results format."""

import argparse
import hashlib
import re
import time

from gfl.common.output import protect_output
from gfl.common.progress import announce, print_line, print_lines, progress_bar


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Evaluate a checkpoint on a COCO-format split: the twelve COCO metrics and AP per class.",
        epilog="example: python eval.py runs/gfl_r18_shapes\n"
        "another split: python eval.py runs/mine/last.pt --data data/mine/test.json data/mine/test --out runs/test\n"
        "test-time augmentation: python eval.py runs/mine eval.tta_flip=true 'eval.tta_scales=[0.8,1,1.25]'\n"
        "several GPUs: torchrun --nproc_per_node=8 eval.py runs/gfl_r50_fpn_1x_coco",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="a run folder (its best.pt, else its last.pt) or a .pt file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="override the checkpoint's config"
    )
    parser.add_argument(
        "--data",
        nargs=2,
        metavar=("JSON", "IMAGES"),
        help="annotations and image folder instead of the config's data.val",
    )
    parser.add_argument(
        "--out",
        help="folder for the results; default: beside the checkpoint, with --data in a folder of its own",
    )
    return parser.parse_intermixed_args()  # overrides may also follow a flag


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce(f"loading libraries and {ARGS.checkpoint}")

from collections.abc import Sequence
from pathlib import Path

import torch

from gfl.checkpoint import load_detector
from gfl.common import distributed
from gfl.common.errors import UserError, run
from gfl.common.files import output_folder, safe_file_name, write_json
from gfl.common.text import shell_command
from gfl.data.coco import CocoData, load_coco
from gfl.data.loader import build_eval_loader
from gfl.evaluation.coco_eval import (
    Result,
    check_backend,
    coco_metrics,
    crowded_findings,
    format_metrics,
    run_detector,
)
from gfl.evaluation.inference import Detector
from gfl.evaluation.views import in_views
from gfl.model.precision import eval_dtype, memory_format, precision_name, set_backends


def main(args: argparse.Namespace) -> None:
    detector = load_detector(args.checkpoint, args.overrides, device="cpu")
    val, settings = detector.config.data.val, detector.config.eval
    set_backends(detector.config.optim)
    check_backend(settings.backend)
    annotations, images = args.data or (val.annotations, val.images)
    if not annotations:
        raise UserError(
            f"{detector.checkpoint} names no data to evaluate on; give it with --data ANNOTATIONS.json IMAGES/"
        )
    out = output_folder(args.out or default_output(detector.checkpoint, args))
    with distributed.process_group() as device:
        ignore_classes = detector.config.data.ignore_classes
        data = load_coco(annotations, images, detector.class_names, ignore_classes=ignore_classes)
        start = time.monotonic()
        results = detect_split(detector, data, device)
        if results is None:
            return
        seconds = time.monotonic() - start
        print_line(f"detected in {seconds:.1f} s, {seconds / len(data) * 1000:.0f} ms per image{in_views(settings)}")
        write_json(out / "detections.json", results)
        print_line(f"{len(results)} detections: {out / 'detections.json'}")
        if not data.has_annotations:
            print("the json has no annotations: no metrics; submit detections.json to the evaluation server")
            return
        metrics = coco_metrics(data, results, max_detections=settings.max_detections, backend=settings.backend)
        write_json(out / "metrics.json", metrics)
        print(f"\n{format_metrics(metrics)}\n")
        print_line(f"metrics: {out / 'metrics.json'}")
        words = [Path(args.checkpoint), Path(data.root), "-o", out / "pictures"]
        words += ["--override", *args.overrides] if args.overrides else []
        print_line(f"next: {shell_command('python', 'scripts/predict.py', *words)}")


def default_output(checkpoint: Path, args: argparse.Namespace) -> Path:
    """The run folder; with another split or other settings a folder in it, so that the run's own metrics stay."""
    out = checkpoint.parent
    if args.data:
        out = out / safe_file_name(Path(args.data[0]).stem)
    if args.overrides:
        out = out / settings_name(args.overrides)
    return out


def settings_name(overrides: Sequence[str]) -> str:
    """A folder's name for overrides, with a digest where it does not show all of them."""
    text = "_".join(overrides)
    name = safe_file_name(re.sub(r"[^\w.=-]+", "_", text)[:100])
    return name if name == text else f"{name}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def detect_split(detector: Detector, data: CocoData, device: torch.device) -> list[Result] | None:
    """Detections of all processes in COCO's results format on the main process; None on the others."""
    config = detector.config
    rank, world = distributed.rank(), distributed.world_size()
    loader = build_eval_loader(data, config.data, config.eval, rank=rank, world=world, pin_memory=device.type == "cuda")
    dtype = eval_dtype(config, device)
    if rank == 0:
        print_line(
            f"{detector.checkpoint} on {data.annotations}: {len(data)} images{in_views(config.eval)}, "
            f"{len(data.labels)} boxes, {world} x {device.type}, {precision_name(dtype)}"
        )
        crowded = crowded_findings(data, config.eval)
        notes = [*data.notes, *data.eval_notes, *(finding.note() for finding in crowded)]
        print_lines([f"note: {note}" for note in notes], indent=6)
    with progress_bar(total=len(loader), unit="batch", enabled=rank == 0) as bar:
        model = detector.model.to(device, memory_format=memory_format(config.optim, dtype))
        return run_detector(model, loader, data, config.eval, device, dtype=dtype, on_batch=bar.update)


if __name__ == "__main__":
    run(main, ARGS)
