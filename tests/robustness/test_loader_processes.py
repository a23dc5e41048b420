"""Processes that load images for training or for the doctor are killed or fail."""

import dataclasses
import gc
import multiprocessing
import os
import signal

import numpy as np
import pytest

from gfl.config import DataConfig
from gfl.data.dataset import CocoDataset
from gfl.data.loader import batches, build_eval_loader, build_train_loader
from gfl.data.sampler import TrainSampler
from gfl.tools.doctor import images

pytestmark = pytest.mark.robustness

CONFIG = DataConfig(short_side=64, long_side=96, workers=1)


@pytest.fixture
def data(coco_set):
    return coco_set([(60, 40)] * 5, [(number, 7, [10, 10, 20, 15]) for number in range(5)]).load()


@pytest.mark.parametrize("training", [True, False])
def test_a_killed_loader_process_is_one_line(data, refusal, training):
    """Whichever comes first: a batch whose memory is gone with its process, or one that never arrives."""
    before, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
    sampler = TrainSampler(np.arange(5), data.sizes, batch=1)
    loader = build_train_loader(data, CONFIG, sampler, seed=0) if training else build_eval_loader(data, CONFIG)
    iterator = batches(loader)
    next(iterator)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    message = refusal(list, iterator)
    assert message.code == "loader_died"
    assert all(advice in message for advice in ("memory", "data.workers", "--resume"))
    del iterator, loader
    gc.collect()
    assert set(multiprocessing.active_children()) <= before
    assert signal.getsignal(signal.SIGCHLD) == handler


def batches_of_epochs(data, config, epochs=2):
    """Ids of the images of some epochs, and the loader processes of each."""
    before = set(multiprocessing.active_children())
    sampler = TrainSampler(np.arange(5), data.sizes, batch=2)
    loader = build_train_loader(data, config, sampler, seed=0)
    ids, processes = [], []
    for sampler.epoch in range(epochs):
        iterator = batches(loader)
        ids.append([next(iterator).image_ids.tolist()])
        processes.append({process.pid for process in set(multiprocessing.active_children()) - before})
        ids[-1] += [batch.image_ids.tolist() for batch in iterator]
        del iterator
    return ids, processes, loader


def test_processes_that_persist_load_what_new_ones_would(data):
    config = dataclasses.replace(CONFIG, persistent_workers=False)
    ids, (first, second), _ = batches_of_epochs(data, config)
    again, (kept, same), _ = batches_of_epochs(data, CONFIG)
    assert again == ids
    assert ids[0] != ids[1]
    assert (len(first), len(second), len(kept)) == (1, 1, 1)
    assert not first & second
    assert kept == same


def test_a_process_that_is_killed_between_two_epochs_is_one_line(data, refusal):
    _, ((worker,),), loader = batches_of_epochs(data, CONFIG, epochs=1)
    os.kill(worker, signal.SIGKILL)
    assert refusal(list, batches(loader)).code == "loader_died"


@pytest.mark.parametrize("kind", [RuntimeError, FileNotFoundError])
def test_a_bug_in_a_loader_process_is_no_dead_process(data, kind, monkeypatch):
    def fail(*_):
        raise kind("a bug")

    monkeypatch.setattr(CocoDataset, "__getitem__", fail)
    with pytest.raises(kind, match="a bug"):
        list(batches(build_eval_loader(data, CONFIG)))


def test_a_process_of_the_doctor_that_dies_is_one_line(coco_set, monkeypatch, refusal):
    monkeypatch.setattr(images, "inspect_image", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    made = coco_set()
    message = refusal(images.inspect_images, made.load())
    assert str(made.file(0)) in message
    assert message.code == "loader_died"
