"""Train a detector: build everything from the config, run the loop, save. Reads from top to bottom."""

import argparse

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
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run folder")
    return parser.parse_intermixed_args()  # overrides may also follow a flag


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once and no signal is missed
    ARGS, STOP = parse_args(), StopRequest()

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gfl.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    Progress,
    read_checkpoint,
    save_checkpoint,
)
from gfl.common import distributed
from gfl.common.dataclass_from_dict import told
from gfl.common.errors import Interrupted, UserError, run
from gfl.config import Config, config_differences, load_config, save_config
from gfl.data.bad_images import tell_bad_images
from gfl.data.coco import load_coco
from gfl.data.loader import TrainSampler, batches, build_eval_loader, build_train_loader, train_candidates
from gfl.evaluation.coco_eval import coco_metrics, run_detector, sample_pictures
from gfl.method.criterion import build_criterion
from gfl.model.detector import build_detector, normalize_images
from gfl.structures import Batch
from gfl.training.finetune import load_initial_weights
from gfl.training.log import RunLog
from gfl.training.nonfinite import FiniteGuard, memory_advice
from gfl.training.optim import autocast_dtype, build_optimizer, learning_rate, set_learning_rate
from gfl.training.resume import note_launch, restore, where_to_go_on
from gfl.training.summary import run_summary


def main(args: argparse.Namespace, stop: StopRequest) -> None:
    config = load_config(args.config, args.overrides)
    with distributed.process_group() as device:
        leave_before_start(stop)
        trainer = Trainer(config, device, stop, resume=args.resume)
        if distributed.is_main():
            print(trainer.describe(), flush=True)
        trainer.fit()


def leave_before_start(stop: StopRequest) -> None:
    """Stop where a signal asked any process to, as long as nothing is trained or written."""
    if signum := stop.agreed():
        if distributed.is_main():
            print("stopped before the first step; the same command starts again")
        raise Interrupted(signum)


class Trainer:
    """One process's part of a run. Methods stand in the order in which they are called."""

    def __init__(self, config: Config, device: torch.device, stop: StopRequest, *, resume: bool) -> None:
        self.config, self.device, self.stop, self.run_dir = config, device, stop, Path(config.run_dir)
        self.checkpoint, self.damaged = where_to_go_on(self.run_dir, resume=resume)
        self._build_data()
        torch.manual_seed(config.seed)
        class_names, fresh = self.train_data.class_names, self.checkpoint is None
        imagenet = fresh and config.model.weights == "none"
        self.model = build_detector(config, len(class_names), pretrained=imagenet).to(device)
        self.start = load_initial_weights(self.model, config, class_names) if fresh else ""
        self.memory_format = torch.channels_last if config.optim.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        self.criterion = build_criterion(config, self.model.quality, self.model.box_repr)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.amp_dtype = autocast_dtype(config.optim, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype == torch.float16)
        self.guard = FiniteGuard(self.optimizer, self.scaler, self.run_dir)
        self.progress, self.changes = Progress(), []
        if self.checkpoint:
            self._restore(self.checkpoint)
        self.parallel = DistributedDataParallel(self.model) if distributed.world_size() > 1 else self.model

    def _build_data(self) -> None:
        data, optim, seed = self.config.data, self.config.optim, self.config.seed
        shard = {"rank": distributed.rank(), "world": distributed.world_size()}
        pin_memory = self.device.type == "cuda"
        self.train_data = load_coco(data.train.annotations, data.train.images)
        self.val_data = load_coco(data.val.annotations, data.val.images, self.train_data.class_names)
        if not self.val_data.has_annotations:
            raise UserError(
                f"{data.val.annotations} has no annotations to evaluate on; set data.val to a split that has"
            )
        self.sampler = TrainSampler(
            train_candidates(self.train_data, keep_empty=data.keep_empty),
            self.train_data.sizes,
            batch=optim.batch,
            accumulate=optim.accumulate,
            seed=seed,
            **shard,
        )
        self.train_loader = build_train_loader(self.train_data, data, self.sampler, seed=seed, pin_memory=pin_memory)
        self.val_loader = build_eval_loader(
            self.val_data, data, batch=self.config.eval.batch, pin_memory=pin_memory, **shard
        )

    def _restore(self, path: Path) -> None:
        """Load model, optimiser and position; a changed config is told, one that does not fit is refused."""
        state = read_checkpoint(path)
        self.progress = restore(
            state,
            path,
            model=self.model,
            optimizer=self.optimizer,
            scaler=self.scaler,
            config=self.config,
            class_names=self.train_data.class_names,
            steps_per_epoch=self.sampler.steps_per_epoch,
        )
        self.changes = told(config_differences(state["config"], self.config))

    def describe(self) -> str:
        """What the run will do, and where it goes on."""
        text = run_summary(self.config, self.device, self.model, self.train_data, self.val_data, self.sampler)
        if self.checkpoint and self.progress.epoch == self.config.optim.epochs:
            text.append(f"resume   {self.checkpoint} is complete, nothing is left to train")
        elif self.checkpoint:
            text.append(f"resume   {self.checkpoint}: epoch {self.progress.epoch + 1}, step {self.progress.step}")
        if self.start:
            text.append(f"weights  {self.start}")
        text += [f"warning  {problem}" for problem in self.damaged]
        text += [f"changed  {change}" for change in self.changes]
        return "\n".join(text)

    def fit(self) -> None:
        """Epochs of training, saving and evaluation."""
        optim, steps_per_epoch = self.config.optim, self.sampler.steps_per_epoch
        leave_before_start(self.stop)
        if distributed.is_main():
            save_config(self.config, self.run_dir / "config.yaml")
            note_launch(self.run_dir)
        self.log = RunLog(
            self.run_dir,
            first_step=self.progress.epoch * steps_per_epoch + self.progress.step,
            total_steps=optim.epochs * steps_per_epoch,
            images_per_step=optim.batch,
            interval=self.config.log.interval,
            evaluated=self.progress.step < steps_per_epoch,
            enabled=distributed.is_main(),
        )
        try:
            for epoch in range(self.progress.epoch, optim.epochs):
                self.train_epoch(epoch)
                if (epoch + 1) % self.config.eval.interval == 0 or epoch + 1 == optim.epochs:
                    self.save(LAST)  # whatever happens while evaluating, --resume evaluates again
                    self.evaluate()
                self.move_to(epoch + 1, 0)
                self.save(LAST)
        finally:
            self.log.close()
        tell_bad_images(self.train_loader.dataset.bad, self.run_dir)
        if distributed.is_main():
            best = f"{self.progress.best:.3f}" if self.progress.best >= 0 else "-"
            print(f"done: best AP {best}\nnext: python eval.py {self.run_dir}")

    def train_epoch(self, epoch: int) -> None:
        """The steps of one epoch, from the step a resumed run stands at."""
        self.parallel.train()
        self.sampler.epoch, self.sampler.first_step = epoch, self.progress.step
        iterator = batches(self.train_loader)
        for done in range(self.progress.step + 1, self.sampler.steps_per_epoch + 1):
            step = epoch * self.sampler.steps_per_epoch + done
            rate = learning_rate(step - 1, self.config.optim, steps_per_epoch=self.sampler.steps_per_epoch)
            losses = self.train_step(iterator, step, rate)
            self.move_to(epoch, done)
            last = done == self.sampler.steps_per_epoch
            self.log.train_step(step, epoch + 1, losses, rate, last=last)
            self.leave_if_asked()
            if not last and done % self.config.save_interval == 0:
                self.save(LAST)

    def train_step(self, iterator: Iterator[Batch], step: int, rate: float) -> dict[str, Tensor]:
        """One update of the weights from `accumulate` passes; the losses stay on the device."""
        optim = self.config.optim
        set_learning_rate(self.optimizer, rate)
        torch.manual_seed(self.config.seed + step)  # whatever is drawn is a function of the step, as resuming needs
        self.optimizer.zero_grad(set_to_none=True)
        passes, taken = [], []
        for number in range(optim.accumulate):
            taken.append(next(iterator))
            last = number == optim.accumulate - 1
            with contextlib.ExitStack() as around:
                around.enter_context(memory_advice(taken[-1].images.shape))
                if not last and self.parallel is not self.model:
                    around.enter_context(self.parallel.no_sync())
                losses = self.forward(taken[-1].to(self.device))
                self.scaler.scale(sum(losses.values()) / optim.accumulate).backward()
            passes.append({name: loss.detach() for name, loss in losses.items()})
        losses = {name: sum(losses[name] for losses in passes) / optim.accumulate for name in passes[0]}
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm or torch.inf)
        self.guard.update(norm, losses)
        self.guard.see(step, norm, losses, taken)
        return losses

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Batch on the device -> weighted losses, in float32 whatever the autocast."""
        images = normalize_images(batch.images, batch.image_sizes).contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            output = self.parallel(images)
        return self.criterion(output, batch.targets, batch.image_sizes)

    def move_to(self, epoch: int, step: int) -> None:
        """Note that `step` steps of `epoch` (from 0) are done."""
        self.progress = Progress(epoch, step, self.progress.best, self.sampler.steps_per_epoch)

    def leave_if_asked(self) -> None:
        """Save and stop where a signal asked any process to; all processes call this equally often."""
        if not (signum := self.stop.agreed()):
            return
        self.save(LAST)
        self.log.close()  # the progress bar goes before anything is printed
        tell_bad_images(self.train_loader.dataset.bad, self.run_dir)
        distributed.share_from_main(None)  # wait for it: torchrun gives the last process little time after the first
        if distributed.is_main():
            done = f"step {self.progress.step} of epoch {self.progress.epoch + 1}"
            print(f"stopped after {done}, saved in {self.run_dir}; the same command with --resume goes on from there")
        raise Interrupted(signum)

    def save(self, name: str) -> None:
        """Write a checkpoint (main process only)."""
        self.guard.settle(self.model)
        if distributed.is_main():
            save_checkpoint(
                self.run_dir / name,
                model=self.model,
                config=self.config,
                class_names=self.train_data.class_names,
                progress=self.progress,
                optimizer=self.optimizer,
                scaler=self.scaler,
                # A damaged one does not take the place of the one before.
                keep=self.run_dir / PREVIOUS if name == LAST and not self.damaged else None,
            )
            self.damaged = []

    def evaluate(self) -> None:
        """COCO figures of the validation split; the best model so far is kept as best.pt."""
        distributed.share_buffers(self.model)  # the statistics of trained BatchNorms differ between processes
        results = run_detector(self.model, self.until_asked(), self.val_data, self.config.eval, self.device)
        if results is None:
            return
        metrics: dict[str, Any] = coco_metrics(self.val_data, results)
        self.log.evaluation(
            self.progress.epoch + 1, metrics, sample_pictures(self.val_data, results, self.config.log.images)
        )
        if metrics["AP"] is not None and metrics["AP"] > self.progress.best:  # None: no box to find, so none is best
            self.progress = self.progress._replace(best=metrics["AP"])
            self.save(BEST)

    def until_asked(self) -> Iterator[Batch]:
        """Batches of the validation split; a process whose share ends earlier still takes part in the last round."""
        share = -(-len(self.val_data) // distributed.world_size())
        rounds, iterator = -(-share // self.config.eval.batch), batches(self.val_loader)
        for _ in range(rounds):
            yield from itertools.islice(iterator, 1)
            self.leave_if_asked()


if __name__ == "__main__":
    run(main, ARGS, STOP)
