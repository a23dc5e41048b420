"""Which of the weights in a file are taken: containers, prefixes of wrappers, averaged weights beside others."""

import itertools
from collections import OrderedDict

import pytest
import torch
from external_models import Buffer

from gfl.common.torch_pickle import Placeholder
from gfl.tools.convert.stored_weights import find_weights

NAMES = ("backbone.conv1.weight", "neck.fpn_convs.0.conv.bias")
LAST = {name: torch.full((2,), 1.0) for name in NAMES}
AVERAGED = {name: torch.full((2,), 2.0) for name in NAMES}


def prefixed(prefix, tensors):
    return OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())


def as_buffers(tensors):
    """As mmcv's EMAHook names the weights that it keeps beside the model's."""
    return {f"ema_{name.replace('.', '_')}": tensor for name, tensor in tensors.items()}


def averaged_module(tensors, counter):
    """The state dict of an averaged model of PyTorch ("n_averaged") or mmengine ("steps")."""
    return {counter: torch.tensor(7)} | prefixed("module.", tensors)


BESIDE = {"optimizer": {"state": {}}, "epoch": 3, "args": Buffer(), "lr_scheduler": {"last_epoch": 3}}
ITERATIONS = "runner = dict(type='IterBasedRunner', max_iters=9)"
FILES = {  # content, text of the config
    "PyTorch": ({"model": LAST, "model_ema": averaged_module(AVERAGED, "n_averaged"), **BESIDE}, ""),
    "timm": ({"state_dict": LAST, "state_dict_ema": AVERAGED, "arch": "resnet50", "version": 2}, ""),
    "ConvNeXt": ({"model": prefixed("module.", LAST), "model_ema": AVERAGED, **BESIDE}, ""),
    "RT-DETR": ({"model": LAST, "ema": {"module": AVERAGED, "updates": 9}, **BESIDE}, ""),
    "plain ema": ({"model": LAST, "ema": AVERAGED}, ""),
    "ema_state_dict of another codebase": ({"model_state_dict": LAST, "ema_state_dict": AVERAGED}, ""),
    "mmengine": (  # which swaps the two
        {"state_dict": AVERAGED, "ema_state_dict": averaged_module(LAST, "steps"), "message_hub": {"a": Buffer()}},
        "",
    ),
    "mmcv": ({"state_dict": AVERAGED | as_buffers(LAST), "meta": {}}, ""),  # which swaps at the end of an epoch
    "mmcv, bare and wrapped": (prefixed("module.", AVERAGED | as_buffers(LAST)), ""),
    "mmcv, trained by iterations": ({"state_dict": LAST | as_buffers(AVERAGED), "meta": {}}, ITERATIONS),
    "teacher and student": ({"state_dict": prefixed("student.", LAST) | prefixed("teacher.", AVERAGED)}, ""),
    "teacher beside student": ({"student": prefixed("module.", LAST), "teacher": AVERAGED, **BESIDE}, ""),
}


def is_same(found, expected):
    return found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize(("content", "text"), FILES.values(), ids=FILES)
def test_averaged_weights_are_taken_and_the_others_on_demand(content, text):
    tensors, summary, _ = find_weights(content, None, text)
    assert is_same(tensors, AVERAGED)
    assert "averaged" in summary.partition(";")[0]
    assert "--weights model" in summary
    assert is_same(find_weights(content, "ema", text).tensors, AVERAGED)
    tensors, summary, _ = find_weights(content, "model", text)
    assert is_same(tensors, LAST)
    assert "--weights ema" in summary


def test_tensors_that_mmcv_does_not_average_are_in_both_sets():
    statistics = {"backbone.bn1.running_mean": torch.full((2,), 3.0)}
    content = {"state_dict": AVERAGED | statistics | as_buffers(LAST)}
    assert is_same(find_weights(content).tensors, AVERAGED | statistics)
    assert is_same(find_weights(content, "model").tensors, LAST | statistics)


PREFIXES = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "module.module.",
    "model.",
    "model._orig_mod.",
    "net.model.",
]


@pytest.mark.parametrize(
    ("key", "prefix"), list(itertools.product(["", "state_dict", "model", "model_state_dict", "net"], PREFIXES))
)
def test_prefixes_of_wrappers_are_removed_in_every_container(key, prefix):
    tensors = prefixed(prefix, LAST)
    found, summary, ignored = find_weights({key: tensors, **BESIDE} if key else tensors)
    assert ignored == (tuple(BESIDE) if key else ())
    assert is_same(found, LAST)
    assert all(f"{part}." in summary for part in prefix.split(".") if part)


@pytest.mark.parametrize("counter", ["n_averaged", "steps"])
def test_an_averaged_model_by_itself_is_taken_as_such(counter, refusal):
    tensors, summary, _ = find_weights(averaged_module(AVERAGED, counter))
    assert is_same(tensors, AVERAGED)
    assert "averaged" in summary
    assert refusal(find_weights, averaged_module(AVERAGED, counter), "model").code == "weights"


def test_a_wrapped_part_of_a_model_loses_its_prefix():
    inside = {name.replace("backbone.", "backbone._orig_mod."): tensor for name, tensor in LAST.items()}
    assert is_same(find_weights(inside).tensors, LAST)


def test_the_only_weights_of_a_file_under_usual_names_need_no_remark():
    assert find_weights({"state_dict": LAST, "meta": {}}).summary == find_weights(LAST).summary == ""


@pytest.mark.parametrize("choice", ["ema", "model"])
def test_weights_that_a_file_lacks_are_refused(choice, refusal):
    content = {"state_dict" if choice == "ema" else "model_ema": LAST}
    assert refusal(find_weights, content, choice).code == "weights"
    assert f"--weights {choice}" in refusal(find_weights, content, choice)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (Placeholder(), "model.state_dict()"),
        ({"model": Placeholder(), "ema": None, "epoch": 3}, "model"),
        ({"state_dict": LAST | {"extra": [1]}}, "extra"),
        ({"weights": 3, "epoch": 4}, "weights"),
        (LAST | {"module.backbone.conv1.weight": torch.ones(2)}, "backbone.conv1.weight"),
    ],
    ids=["a model", "a model in a container", "another value", "no container", "two of one name"],
)
def test_what_holds_no_state_dict_is_described(content, part, refusal):
    assert part in refusal(find_weights, content)
