"""COCO metrics of a checkpoint, and its detections in COCO's results format."""

import argparse
import re
import signal


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Evaluate a checkpoint on a COCO-format split: the twelve COCO metrics and AP per class.",
        epilog="example: python eval.py runs/gfl_r18_shapes\n"
        "another split: python eval.py runs/mine/last.pt --data data/mine/test.json data/mine/test --out runs/test\n"
        "several GPUs: torchrun --nproc_per_node=8 eval.py runs/gfl_r50_fpn_1x_coco",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="a run folder (its best.pt, else its last.pt) or a .pt file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override the checkpoint's config")
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


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once and Ctrl-C is no traceback
    ARGS = parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from pathlib import Path

from gfl.checkpoint import load_detector
from gfl.common import distributed
from gfl.common.errors import UserError, run
from gfl.common.files import write_json
from gfl.common.progress import progress_bar
from gfl.data.coco import load_coco
from gfl.data.loader import build_eval_loader
from gfl.evaluation.coco_eval import coco_metrics, format_metrics, run_detector


def main(args: argparse.Namespace) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    detector = load_detector(args.checkpoint, args.overrides, device="cpu")
    config, path = detector.config, detector.checkpoint
    annotations, images, out = config.data.val.annotations, config.data.val.images, path.parent
    if not annotations and not args.data:
        raise UserError(f"{path} names no data to evaluate on; give it with --data ANNOTATIONS.json IMAGES/")
    if args.data:  # another split gets a folder of its own, so that the run's own metrics stay
        annotations, images = args.data
        out = path.parent / Path(annotations).stem
    if args.overrides:  # other settings: the run's own metrics stay
        out = out / re.sub(r"[^\w.=-]+", "_", "_".join(args.overrides))[:100]
    if args.out:
        out = Path(args.out)
    if out.is_file():
        raise UserError(f"--out {out} is a file; choose a folder")
    with distributed.process_group() as device:
        data = load_coco(annotations, images, detector.class_names)
        rank, world = distributed.rank(), distributed.world_size()
        loader = build_eval_loader(
            data, config.data, batch=config.eval.batch, rank=rank, world=world, pin_memory=device.type == "cuda"
        )
        if rank == 0:
            print(
                f"{path} on {data.annotations}: {len(data)} images, {len(data.labels)} boxes, {world} x {device.type}"
            )
            for note in data.notes:
                print(f"note: {note}")
        with progress_bar(total=len(loader), unit="batch", enabled=rank == 0) as bar:
            results = run_detector(detector.model.to(device), loader, data, config.eval, device, on_batch=bar.update)
        if results is None:
            return
        write_json(out / "detections.json", results)
        print(f"{len(results)} detections: {out / 'detections.json'}")
        if not data.has_annotations:
            print("the json has no annotations: no metrics; submit detections.json to the evaluation server")
            return
        metrics = coco_metrics(data, results)
        write_json(out / "metrics.json", metrics)
        print(f"\n{format_metrics(metrics)}\n\nmetrics: {out / 'metrics.json'}")
        print(f"next: python scripts/predict.py {args.checkpoint} {data.root} -o {out / 'pictures'}")


if __name__ == "__main__":
    run(main, ARGS)
