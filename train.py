"""Train a detector: build everything from the config, run the loop, save. Reads from top to bottom."""

import argparse


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


ARGS = parse_args() if __name__ == "__main__" else None  # before the heavy imports, so that --help answers at once

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gfl import distributed
from gfl.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    TRAINING,
    Progress,
    find_checkpoint,
    load_model_state,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from gfl.coco_eval import coco_metrics, run_detector, sample_pictures
from gfl.config import Config, config_differences, load_config, save_config
from gfl.criterion import build_criterion
from gfl.data.bad_images import tell_bad_images
from gfl.data.coco import load_coco
from gfl.data.loader import TrainSampler, batches, build_eval_loader, build_train_loader, train_candidates
from gfl.errors import UserError, run
from gfl.finetune import load_initial_weights
from gfl.log import RunLog
from gfl.model.detector import build_detector, normalize_images
from gfl.optim import autocast_dtype, build_optimizer, learning_rate, scaled_lr, set_learning_rate
from gfl.structures import Batch


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.overrides)
    with distributed.process_group() as device:
        trainer = Trainer(config, device, resume=args.resume)
        if distributed.is_main():
            print(trainer.describe(), flush=True)
        trainer.fit()


class Trainer:
    """One process's part of a run. Methods stand in the order in which they are called."""

    def __init__(self, config: Config, device: torch.device, *, resume: bool) -> None:
        self.config, self.device, self.run_dir = config, device, Path(config.run_dir)
        self.checkpoint = self._find_checkpoint(resume)
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
        self.progress, self.changes = Progress(), []
        if self.checkpoint:
            self._restore(self.checkpoint)
        self.parallel = DistributedDataParallel(self.model) if distributed.world_size() > 1 else self.model

    def _find_checkpoint(self, resume: bool) -> Path | None:
        """Where the run goes on. A run that is there already is never overwritten."""
        if self.run_dir.exists() and not self.run_dir.is_dir():
            raise UserError(f"run_dir {self.run_dir} is a file; choose a folder")
        if find_checkpoint(self.run_dir, LAST, PREVIOUS, BEST) and not resume:
            raise UserError(f"{self.run_dir} already holds a run: go on with --resume, or choose another run_dir=...")
        newest, self.damaged = distributed.share_from_main(newest_checkpoint(self.run_dir))
        if resume and not newest and distributed.is_main():
            print(f"resume   nothing in {self.run_dir} yet, starting from the beginning")
        return newest

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
        if not state.keys() >= TRAINING:
            raise UserError(f"{path} holds weights only, as conversion writes them; --resume cannot go on from it")
        self.changes = config_differences(state["config"], self.config)
        self.progress = Progress(**state["progress"])
        fresh, saved = self.optimizer.state_dict()["param_groups"], state["optimizer"]
        if tuple(state["class_names"]) != self.train_data.class_names:
            raise UserError(f"{path} was trained on other classes than {self.train_data.annotations} has")
        if self.progress.steps_per_epoch != self.sampler.steps_per_epoch:
            raise UserError(
                f"{path} has {self.progress.steps_per_epoch} steps per epoch, not {self.sampler.steps_per_epoch}: "
                "optim.batch or the training data changed; start a new run_dir"
            )
        if state["config"]["optim"]["name"] != self.config.optim.name or (
            [len(group["params"]) for group in fresh] != [len(group["params"]) for group in saved["param_groups"]]
        ):
            raise UserError(
                f"{path} was trained with another optim.name, bias factor or frozen_stages; --resume cannot change it"
            )
        load_model_state(self.model, state, path)
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": fresh})
        if state["scaler"]:  # empty where the run was not in fp16
            self.scaler.load_state_dict(state["scaler"])

    def describe(self) -> str:
        """What the run will do, for the user to check before it does it."""
        optim, data, sampler = self.config.optim, self.train_data, self.sampler
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in self.model.parameters()]
        total, trained = sum(n for n, _ in counts) / 1e6, sum(n for n, grad in counts if grad) / 1e6
        processes = distributed.world_size()
        device = f"{self.device.type}" + (f" ({torch.get_num_threads()} threads)" if self.device.type == "cpu" else "")
        precision = "float32" if self.amp_dtype is None else f"{str(self.amp_dtype).removeprefix('torch.')} autocast"
        classes = ", ".join(
            f"{label} {name} (id {category})"
            for label, (name, category) in enumerate(zip(data.class_names, data.category_ids, strict=True))
        )
        lines = {
            "device": f"{processes} x {device}, {precision}" + (", channels_last" if optim.channels_last else ""),
            "train": f"{len(sampler.candidates)} of {len(data)} images, {len(data.labels)} boxes  {data.annotations}",
            "val": f"{len(self.val_data)} images, {len(self.val_data.labels)} boxes  {self.val_data.annotations}",
            "classes": f"{len(data.class_names)}: {classes}",
            "model": f"{self.config.model.backbone.name}, {total:.2f} M parameters ({trained:.2f} M trained)",
            "batch": f"{optim.batch} = {processes} process(es) x {optim.accumulate} pass(es) x "
            f"{optim.batch // processes // optim.accumulate} images",
            "lr": f"{scaled_lr(optim):g} = {optim.lr:g} x {optim.batch} / {optim.base_batch}, {optim.name}, "
            f"{optim.warmup_steps} warm-up steps, {optim.decay} decay",
            "steps": f"{optim.epochs} epochs x {sampler.steps_per_epoch} = {optim.epochs * sampler.steps_per_epoch}",
            "output": str(self.run_dir),
        }
        text = [f"{name:<8} {value}" for name, value in lines.items()]
        text += [f"note     train: {note}" for note in data.notes] + [f"note     val: {n}" for n in self.val_data.notes]
        if dropped := len(data) - len(sampler.candidates):
            text.append(f"note     {dropped} training images without boxes dropped; data.keep_empty=true keeps them")
        if optim.warmup_steps * 2 > optim.epochs * sampler.steps_per_epoch:
            text.append(
                "note     more than half of the steps are warm-up; lower optim.warmup_steps or raise optim.epochs"
            )
        if self.checkpoint and self.progress.epoch == optim.epochs:
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
        if distributed.is_main():
            save_config(self.config, self.run_dir / "config.yaml")
        self.log = RunLog(
            self.run_dir,
            first_step=self.progress.epoch * steps_per_epoch + self.progress.step,
            total_steps=optim.epochs * steps_per_epoch,
            images_per_step=optim.batch,
            interval=self.config.log.interval,
            enabled=distributed.is_main(),
        )
        self.stop = distributed.StopRequest()
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
            losses = self.train_step(iterator, rate)
            self.move_to(epoch, done)
            # Losses are looked at, and processes agree to stop, on steps that sync anyway; so nothing unseen is saved.
            look = done == self.sampler.steps_per_epoch or self.stop.asked_alone
            if self.log.train_step(step, epoch + 1, losses, rate, look=look) and self.stop.agreed(self.device):
                self.leave()

    def train_step(self, iterator: Iterator[Batch], rate: float) -> dict[str, Tensor]:
        """One update of the weights from `accumulate` passes; the losses stay on the device."""
        optim = self.config.optim
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        passes = []
        for number in range(optim.accumulate):
            batch = next(iterator).to(self.device)
            last = number == optim.accumulate - 1
            with contextlib.nullcontext() if last or self.parallel is self.model else self.parallel.no_sync():
                losses = self.forward(batch)
                self.scaler.scale(sum(losses.values()) / optim.accumulate).backward()
            passes.append({name: loss.detach() for name, loss in losses.items()})
        self.scaler.unscale_(self.optimizer)
        if optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {name: sum(losses[name] for losses in passes) / optim.accumulate for name in passes[0]}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Batch on the device -> weighted losses, in float32 whatever the autocast."""
        images = normalize_images(batch.images, batch.image_sizes).contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            output = self.parallel(images)
        return self.criterion(output, batch.targets, batch.image_sizes)

    def move_to(self, epoch: int, step: int) -> None:
        """Note that `step` steps of `epoch` (from 0) are done."""
        self.progress = Progress(epoch, step, self.progress.best, self.sampler.steps_per_epoch)

    def leave(self) -> None:
        """Save in the middle of an epoch and stop."""
        self.save(LAST)
        self.log.close()  # the progress bar goes before anything is printed
        tell_bad_images(self.train_loader.dataset.bad, self.run_dir)
        if distributed.is_main():
            done = f"step {self.progress.step} of epoch {self.progress.epoch + 1}"
            print(f"stopped after {done}, saved in {self.run_dir}; the same command with --resume goes on from there")
        raise KeyboardInterrupt

    def save(self, name: str) -> None:
        """Write a checkpoint (main process only)."""
        if distributed.is_main():
            save_checkpoint(
                self.run_dir / name,
                model=self.model,
                config=self.config,
                class_names=self.train_data.class_names,
                progress=self.progress,
                optimizer=self.optimizer,
                scaler=self.scaler,
                keep=self.run_dir / PREVIOUS if name == LAST else None,
            )

    def evaluate(self) -> None:
        """COCO figures of the validation split; the best model so far is kept as best.pt."""
        distributed.share_buffers(self.model)  # the statistics of trained BatchNorms differ between processes
        results = run_detector(self.model, self.val_loader, self.val_data, self.config.eval, self.device)
        if results is None:
            return
        metrics: dict[str, Any] = coco_metrics(self.val_data, results)
        self.log.evaluation(
            self.progress.epoch + 1, metrics, sample_pictures(self.val_data, results, self.config.log.images)
        )
        if metrics["AP"] is not None and metrics["AP"] > self.progress.best:  # None: no box to find, so none is best
            self.progress = self.progress._replace(best=metrics["AP"])
            self.save(BEST)


if __name__ == "__main__":
    run(main, ARGS)
