"""A summary of a run, for the user to check before it starts."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gfl.checkpoint import Progress, TrainState
from gfl.common import distributed
from gfl.common.text import format_differences, printable, shell_command
from gfl.config import Config
from gfl.data.loader import TrainingData
from gfl.evaluation.views import in_views
from gfl.model.precision import autocast_dtype, memory_format, precision_name
from gfl.training.acceleration import compile_problem
from gfl.training.data_fit import fit_notes
from gfl.training.divergence import looks_diverged, newest_sane_checkpoint
from gfl.training.metrics_file import METRICS_FILE, loss_trend
from gfl.training.optim import scaled_lr, warmup_steps
from gfl.training.resume import resume_option
from gfl.training.schedule import is_finished, stops_early

MAX_CLASSES, MAX_NOTES = 20, 12  # that are shown
MIN_AP = 0.001  # below it nothing was learned
LOW_AP, FEW_STEPS = 0.3, 1500  # below both a run on new data was too short, not the data too hard
TOO_FEW_STEPS = 500  # for a detector that starts without trained weights of its own
MAX_WARMUP = 0.25  # of the steps


def run_summary(config: Config, device: torch.device, model: nn.Module, data: TrainingData) -> list[str]:
    """Lines with a name and a value each, then notes on unusual settings."""
    train, val, sampler = data.train, data.val, data.sampler
    optim = config.optim
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total, trained = sum(n for n, _ in counts) / 1e6, sum(n for n, grad in counts if grad) / 1e6
    steps, warmup = optim.epochs * sampler.steps_per_epoch, warmup_steps(optim, sampler.steps_per_epoch)
    processes, dtype = distributed.world_size(), autocast_dtype(optim, device)
    layout = ", channels_last" if memory_format(optim, dtype) == torch.channels_last else ""
    kind = f"{device.type}" + (f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else "")
    problem = compile_problem(device) if optim.compile != "none" else ""
    compiled = f", compiled ({optim.compile})" if optim.compile != "none" and not problem else ""
    taught = f", taught by {config.loss.distill.teacher}" if config.loss.distill.teacher != "none" else ""
    classes = [
        f"{label} {printable(name)} (id {category})"
        for label, (name, category) in enumerate(zip(train.class_names, train.category_ids, strict=True))
    ]
    more = f" and {len(classes) - MAX_CLASSES} more" if len(classes) > MAX_CLASSES else ""
    lines = {
        "device": f"{processes} x {kind}, {precision_name(dtype)}{layout}{compiled}",
        "train": f"{len(sampler.candidates)} of {len(train)} images, {len(train.labels)} boxes  {train.annotations}",
        "val": f"{len(val)} images{in_views(config.eval)}, {len(val.labels)} boxes  {val.annotations}",
        "classes": f"{len(classes)}: {', '.join(classes[:MAX_CLASSES])}{more}",
        "model": f"{config.model.backbone.name}, {total:.2f} M parameters ({trained:.2f} M trained){taught}",
        "batch": f"{optim.batch} = {processes} process(es) x {optim.accumulate} pass(es) x "
        f"{optim.batch // processes // optim.accumulate} images",
        "lr": f"{scaled_lr(optim):g} = {optim.lr:g} x {optim.batch} / {optim.base_batch}, {optim.name}, "
        f"{warmup} warm-up steps, {optim.decay} decay",
        "steps": f"{optim.epochs} epochs x {sampler.steps_per_epoch} = {steps}{_rules_of_length(config)}",
        "output": config.run_dir,
    }
    notes = [f"optim.compile: nothing can be compiled here, so it trains without: {problem}"] if problem else []
    if dropped := len(train) - len(sampler.candidates):
        notes.append(f"{dropped} training images without boxes dropped; data.keep_empty=true keeps them")
    notes += _schedule_notes(config, steps, warmup)
    if config.data.workers > (cores := os.cpu_count() or 1):
        notes.append(f"{config.data.workers} loader processes on {cores} cores; data.workers={cores} may be faster")
    notes += fit_notes(train, val, config)
    notes += [f"train: {note}" for note in train.notes] + [f"val: {note}" for note in val.notes + val.eval_notes]
    notes = limit_notes(notes, config)
    return [f"{name:<8} {value}" for name, value in lines.items()] + [f"note     {note}" for note in notes]


def _rules_of_length(config: Config) -> str:
    """What may make a run longer or shorter than its epochs, for the line that names them."""
    least, patience = config.optim.min_steps, config.eval.patience
    rules = [f"at least optim.min_steps={least}"] if least else []
    often = f", every {config.eval.interval} epochs," if config.eval.interval > 1 else ""
    rules += [f"until {patience} evaluation{'s' * (patience > 1)}{often} without a better AP"] if patience else []
    return f" ({', '.join(rules)})" if rules else ""


def _schedule_notes(config: Config, steps: int, warmup: int) -> list[str]:
    optim, notes = config.optim, []
    if warmup > MAX_WARMUP * steps:
        share = f"{warmup / steps:.0%}" if warmup < steps else "all"
        notes.append(f"{share} of the steps are warm-up; lower optim.warmup_steps or raise optim.epochs")
    if steps < TOO_FEW_STEPS and config.model.weights == "none":
        notes.append(f"{steps} steps are too few to learn a new detector; optim.min_steps={FEW_STEPS} adds epochs")
    if optim.decay == "step" and optim.steps and optim.steps[0] >= optim.epochs:
        notes.append(f"optim.steps={list(optim.steps)} lie beyond the last epoch: the rate never falls")
    return notes


def limit_notes(notes: Sequence[str], config: Config) -> list[str]:
    """The first notes, and the command that reports the others where there are many."""
    if len(notes) <= MAX_NOTES:
        return list(notes)
    train, val = config.data.train, config.data.val
    paths = [Path(train.annotations), Path(train.images), "--val", Path(val.annotations), Path(val.images)]
    command = shell_command("python", "scripts/doctor.py", *paths, "--config", Path(config.run_dir) / "config.yaml")
    return [*notes[: MAX_NOTES - 1], f"and {len(notes) - MAX_NOTES + 1} more: {command}"]


def resume_summary(
    config: Config,
    state: TrainState,
    checkpoint: Path | None,
    initial_weights: str,
    damaged: Sequence[str],
    changes: Mapping[str, tuple[Any, Any]],
) -> list[str]:
    """Lines about the start of a run.

    Args:
        checkpoint: what it resumes from, None for a new run.
        initial_weights: what `load_initial_weights` returned.
        damaged: what is wrong with newer checkpoints.
        changes: how config, data and number of processes differ from the checkpoint's.
    """
    lines, progress, loss = [], state.progress, state.running_loss
    if checkpoint and is_finished(progress, config):
        more = "; eval.patience=0 trains on" if progress.epoch < config.optim.epochs else ""
        lines.append(f"resume   {checkpoint} is complete: nothing to train{more}")
    elif checkpoint:
        lines.append(f"resume   {checkpoint}: epoch {progress.epoch + 1}, step {progress.step}")
    if initial_weights:
        lines.append(f"weights  {initial_weights}")
    lines += [f"warning  {problem}" for problem in damaged]
    if looks_diverged(loss):
        sane = newest_sane_checkpoint(Path(config.run_dir), loss)
        advice = f"; {resume_option(sane)} goes back to before that" if sane else ""
        rose = loss.mean - loss.lowest > loss.drop
        what = f"risen from {loss.lowest:.3g} to {loss.mean:.3g}" if rose else f"fallen by {loss.drop:.3g} in one step"
        lines.append(f"warning  its loss had {what}{advice}")
    if progress.lr_factor != 1:
        lines.append(f"note     {progress.lr_factor:g} of the learning rate since it went back after a divergence")
    return lines + [f"changed  {change}" for change in format_differences(changes)]


def end_summary(config: Config, progress: Progress) -> list[str]:
    """Lines about the end of a run: what it reached, what to try where it learned little, and the next command."""
    run_dir, best, steps = Path(config.run_dir), progress.best, progress.epoch * progress.steps_per_epoch
    trend, losses = loss_trend(run_dir / METRICS_FILE), ""
    if trend:
        losses = f" (loss {trend[0]:.3f} in the first tenth of the log, {trend[1]:.3f} in the last)"
    lines = [f"done: best AP {f'{best:.3f}' if best >= 0 else '-'}"]  # negative where it was never defined
    if stops_early(progress, config):
        lines.append(
            f"note     ended after {progress.epoch} of {config.optim.epochs} epochs: the best AP is "
            f"{progress.since_best} evaluation{'s' * (progress.since_best > 1)} old (eval.patience)"
        )
    if best < 0:
        lines.append("warning  no AP: the validation split has no box to find; set data.val to a split that has")
    if trend and trend[1] >= trend[0]:
        lines.append(
            f"warning  the loss did not fall{losses}; lower optim.lr (or raise it if it is tiny), check the boxes with "
            "scripts/doctor.py, and start from trained weights (model.weights or model.backbone.weights)"
        )
    elif 0 <= best < MIN_AP:
        lines.append(
            f"warning  it finds nothing yet{losses}; train longer (optim.epochs; optim.warmup_steps a small part of "
            "the steps), start from trained weights (model.weights or model.backbone.weights), and check the boxes "
            "with scripts/doctor.py"
        )
    elif 0 <= best < LOW_AP and steps < FEW_STEPS and not stops_early(progress, config):
        lines.append(
            f"note     AP {best:.3f} after {steps} steps{losses}: too few, most likely; optim.min_steps={FEW_STEPS} in "
            f"another run_dir trains for {-(-FEW_STEPS // progress.steps_per_epoch)} epochs"
        )
    return [*lines, f"next: {shell_command('python', 'eval.py', run_dir)}"]
