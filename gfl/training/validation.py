"""The evaluation of a model on the validation split while it is trained."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn

from gfl.common import distributed
from gfl.common.progress import progress_bar
from gfl.config import Config
from gfl.data.loader import TrainingData, batches
from gfl.evaluation.coco_eval import coco_metrics, draw_samples, run_detector
from gfl.model.precision import eval_dtype
from gfl.structures import Batch
from gfl.training.log import RunLog


def evaluate(
    model: nn.Module,
    data: TrainingData,
    config: Config,
    device: torch.device,
    log: RunLog,
    stop_if_requested: Callable[[], None],
) -> dict[str, Any] | None:
    """COCO metrics of the validation split, which are logged; None on all processes but the main one."""
    distributed.share_buffers(model)  # the statistics of trained BatchNorms differ between processes
    dtype = eval_dtype(config, device)
    loader = _interruptible_batches(data, stop_if_requested)
    with progress_bar(total=len(data.val_loader), desc="val", leave=False, enabled=distributed.is_main()) as bar:
        results = run_detector(model, loader, data.val, config.eval, device, dtype=dtype, on_batch=bar.update)
    if results is None:
        return None
    metrics = coco_metrics(data.val, results, max_detections=config.eval.max_detections, backend=config.eval.backend)
    log.evaluation(metrics, draw_samples(data.val, results, config.log.images, config.data))
    return metrics


def _interruptible_batches(data: TrainingData, stop_if_requested: Callable[[], None]) -> Iterator[Batch]:
    """Batches of the validation split; a process whose share ends earlier still takes part in the last round."""
    iterator = batches(data.val_loader)
    for _ in range(data.val_loader.batch_sampler.rounds):
        yield from islice(iterator, 1)
        stop_if_requested()
