"""Batches on their way to a GPU. There is none here: streams and events are replaced by ones that keep a log."""

import contextlib

import pytest
import torch

from gfl.data.loader import prefetch
from gfl.structures import Batch, Targets


@pytest.fixture
def batches():
    return [
        Batch(
            torch.full((1, 3, 32, 32), number, dtype=torch.uint8),
            torch.tensor([[32, 32]]),
            Targets(torch.zeros(1, 1, 4), torch.zeros(1, 1).long(), torch.ones(1, 1).bool()),
            torch.tensor([number]),
            torch.tensor([[32, 32]]),
        )
        for number in range(3)
    ]


def test_on_a_cpu_batches_pass_through_one_by_one(batches):
    taken = []
    source = (taken.append(number) or batch for number, batch in enumerate(batches))
    for number, batch in enumerate(prefetch(source, torch.device("cpu"))):
        assert batch is batches[number]
        assert taken == list(range(number + 1))


class Streams:
    """The events of a copying stream and of the current one, in order."""

    def __init__(self, monkeypatch):
        self.log, self.copying = [], False
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self)
        monkeypatch.setattr(torch.cuda, "stream", self.enter)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self)
        monkeypatch.setattr(Batch, "to", lambda batch, device: self.copy(batch, device))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.log.append("keep"))

    @contextlib.contextmanager
    def enter(self, stream):
        self.copying = True
        yield
        self.copying = False

    def copy(self, batch, device):
        assert self.copying
        assert device == torch.device("cuda")
        self.number = int(batch.image_ids)
        self.log.append(f"copy {self.number}")
        return batch

    def record_event(self):
        return self.number

    def wait_event(self, number):
        assert not self.copying
        self.log.append(f"wait {number}")


def test_on_a_gpu_the_next_batch_is_copied_while_one_is_used(batches, monkeypatch):
    streams = Streams(monkeypatch)
    for batch in prefetch(iter(batches), torch.device("cuda")):
        streams.log.append(f"use {int(batch.image_ids)}")
    kept = ["keep"] * 7  # every tensor of a batch, but regions to ignore, which it has none of
    assert streams.log == [
        *("copy 0", "copy 1", "wait 0", *kept, "use 0"),
        *("copy 2", "wait 1", *kept, "use 1"),
        *("wait 2", *kept, "use 2"),
    ]
