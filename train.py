"""Train a detector: build everything from the config, then loop over epochs and steps. Reads from top to bottom."""

import argparse
import sys

from gfl.common.arguments import not_empty
from gfl.common.output import protect_output
from gfl.common.progress import announce, print_line, print_lines
from gfl.training.signals import StopRequest


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a Generalized Focal Loss detector on COCO-format data.",
        epilog="example: python train.py configs/gfl_r18_shapes.yaml optim.epochs=12 run_dir=runs/short\n"
        "several GPUs: torchrun --nproc_per_node=8 train.py configs/gfl_r50_fpn_1x_coco.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file, see configs/; every key is in gfl/config.py")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="override the config; a .yaml is laid over it"
    )
    resume = parser.add_mutually_exclusive_group()
    newest = {"action": "store_const", "const": "newest", "default": ""}
    resume.add_argument("--resume", **newest, help="continue from the newest checkpoint of the run folder")
    other = "continue from the checkpoint `previous`, `best` or a file, and drop what came after it"
    resume.add_argument("--resume-from", dest="resume", type=not_empty, metavar="WHICH", help=other)
    return parser.parse_intermixed_args()  # overrides may also follow a flag


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once and no signal is missed
    protect_output()
    ARGS, STOP = parse_args(), StopRequest()
    announce(f"start    {ARGS.config}: loading libraries and data")

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from gfl.build import build_criterion, build_detector
from gfl.checkpoint import BEST, LAST, TrainState
from gfl.common import distributed
from gfl.common.errors import Interrupted, run
from gfl.config import Config
from gfl.config_file import load_config, save_config
from gfl.data.bad_images import report_bad_images
from gfl.data.loader import batches, load_training_data, prefetch
from gfl.evaluation.coco_eval import check_backend
from gfl.model.average import WeightAverage
from gfl.model.precision import autocast_dtype, memory_format
from gfl.training.acceleration import set_up_backends
from gfl.training.divergence import looks_diverged, train_with_rewind
from gfl.training.initial_weights import load_initial_weights
from gfl.training.log import RunLog
from gfl.training.nonfinite import FiniteGuard
from gfl.training.optim import build_optimizer, learning_rate
from gfl.training.resume import find_resume_checkpoint, restore, write_launch_id
from gfl.training.run_lock import run_lock
from gfl.training.saving import CheckpointSaver
from gfl.training.schedule import after_evaluation, fit_schedule, is_finished
from gfl.training.step import train_step
from gfl.training.summary import end_summary, resume_summary, run_summary
from gfl.training.teacher import load_teacher, teacher_digest
from gfl.training.validation import evaluate


def main(args: argparse.Namespace, stop: StopRequest) -> None:
    config = load_config(args.config, args.overrides)
    resume = bool(args.resume)
    with distributed.process_group() as device, run_lock(Path(config.run_dir), stop, resume=resume) as keep_lock:
        train_with_rewind(partial(train, config, device, stop, keep_lock), args.resume)


def train(config: Config, device: torch.device, stop: StopRequest, keep_lock: Callable[[], None], resume: str) -> None:
    """One process's part of a run."""
    run_dir = Path(config.run_dir)
    stop_before_start(stop)
    set_up_backends(config.optim)
    check_backend(config.eval.backend)

    # What is trained. Only a new run asks for initial weights; a resumed one has them in its checkpoint.
    checkpoint, damaged = find_resume_checkpoint(run_dir, resume)
    data = load_training_data(config, device)
    class_names, steps_per_epoch = data.train.class_names, data.sampler.steps_per_epoch
    config = fit_schedule(config, steps_per_epoch)
    optim, dtype = config.optim, autocast_dtype(config.optim, device)
    torch.manual_seed(config.seed)
    model = build_detector(config, len(class_names)).to(device)
    initial_weights = "" if checkpoint else load_initial_weights(model, config, class_names)
    model.to(memory_format=memory_format(optim, dtype))
    criterion = build_criterion(config, model.quality, model.box_repr, load_teacher(config, device))

    # Everything that a step changes, and that a checkpoint holds.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    average = WeightAverage(model, optim.ema) if optim.ema else None
    state = TrainState(model, build_optimizer(model, optim), scaler, average=average)
    changes, digests = {}, data.digests() | teacher_digest(config)
    if checkpoint:
        expected = {"class_names": class_names, "digests": digests, "steps_per_epoch": steps_per_epoch}
        changes = restore(state, checkpoint, config=config, **expected)
    parallel = DistributedDataParallel(model) if distributed.world_size() > 1 else model
    guard = FiniteGuard(state, run_dir, rewind=optim.on_divergence == "rewind")

    if distributed.is_main():
        summary = run_summary(config, device, model, data)
        summary += resume_summary(config, state, checkpoint, initial_weights, damaged, changes)
        print_lines(summary, indent=9)
    stop_before_start(stop)
    if distributed.is_main():
        save_config(config, run_dir / "config.yaml")
        write_launch_id(run_dir)

    is_last = checkpoint in (None, run_dir / LAST)
    last_is_sound = is_last and not looks_diverged(state.running_loss)
    save = CheckpointSaver(state, config, data, digests, guard, keep_lock, last_is_sound=last_is_sound).save
    if not is_last:  # from now on --resume continues from here
        save(LAST)
    log = RunLog(run_dir, config, state.progress, steps_per_epoch, enabled=distributed.is_main())

    def stop_if_requested() -> None:
        """Save and stop where any process got a signal; all processes call this equally often."""
        if not (signum := stop.synced_signal()):
            return
        save(LAST)
        log.close()  # the progress bar goes before anything is printed
        report_bad_images(state.bad_images, run_dir)
        distributed.share_from_main(None)  # wait for it: torchrun gives the last process little time after the first
        if distributed.is_main():
            done = f"step {state.progress.step} of epoch {state.progress.epoch + 1}"
            # Not to stdout: Ctrl-C also ends what reads it, such as tee.
            print_line(f"stopped after {done}, saved in {run_dir}; continue with --resume", file=sys.stderr)
        raise Interrupted(signum)

    try:
        while not is_finished(state.progress, config):
            # A resumed run enters its epoch at the step where it stood. After the last step there may only be the
            # evaluation left.
            epoch, first_step = state.progress.epoch, state.progress.step
            parallel.train()
            data.sampler.epoch, data.sampler.first_step = epoch, first_step
            iterator = prefetch(batches(data.train_loader), device)
            for step_in_epoch in range(first_step + 1, steps_per_epoch + 1):
                step = epoch * steps_per_epoch + step_in_epoch
                torch.manual_seed(config.seed + step)  # what a step draws is a function of its number: resume needs it
                rate = learning_rate(step - 1, optim, steps_per_epoch=steps_per_epoch) * state.progress.lr_factor
                result = train_step(state, parallel, criterion, iterator, optim, rate)
                guard.record(step, result)
                state.progress = state.progress._replace(
                    epoch=epoch, step=step_in_epoch, steps_per_epoch=steps_per_epoch
                )
                last = step_in_epoch == steps_per_epoch
                log.train_step(step, epoch + 1, result.losses, rate, last=last)
                stop_if_requested()
                if not last and step_in_epoch % config.save_interval == 0:
                    save(LAST)
            del iterator  # ends its loader processes, unless they persist, before those of the evaluation start

            best = state.progress.best
            if (epoch + 1) % config.eval.interval == 0 or epoch + 1 == optim.epochs:
                save(LAST)  # whatever happens while evaluating, --resume evaluates again
                metrics = evaluate(state.detector, data, config, device, log, stop_if_requested)
                state.progress = distributed.share_from_main(after_evaluation(state.progress, metrics))
            state.progress = state.progress._replace(epoch=epoch + 1, step=0, steps_per_epoch=steps_per_epoch)
            # After the epoch has ended: a run resumed from best.pt would evaluate it once more, and count that.
            if state.progress.best > best:
                save(BEST)
            save(LAST)
    finally:
        log.close()

    report_bad_images(state.bad_images, run_dir)
    if distributed.is_main():
        print_lines(end_summary(config, state.progress), indent=9)


def stop_before_start(stop: StopRequest) -> None:
    """Stop where any process got a signal, as long as nothing is trained or written."""
    if signum := stop.synced_signal():
        if distributed.is_main():
            print("stopped before the first step; the same command starts again")
        raise Interrupted(signum)


if __name__ == "__main__":
    run(main, ARGS, STOP)
