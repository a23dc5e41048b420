"""train.py, but for step 8, where the last process reports a loss that is NaN, once: a divergence only it can see."""

import torch

import train
from gfl.common import distributed
from gfl.common.errors import run
from gfl.training import divergence
from gfl.training.signals import StopRequest

divergence.WINDOW = 3  # steps, of a run of ten
original, steps = train.train_step, []


def train_step(*args):
    result = original(*args)
    steps.append(torch.initial_seed())  # the seed is 0
    if steps[-1] == 8 and steps.count(8) == 1 and distributed.rank() == distributed.world_size() - 1:
        return result._replace(losses={name: loss * torch.nan for name, loss in result.losses.items()})
    return result


train.train_step = train_step
run(train.main, train.parse_args(), StopRequest())
