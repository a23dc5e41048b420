"""From a config to parts: every legal combination is built and learns, the others are refused with their key."""

import dataclasses
import functools
import itertools
import typing

import oracles
import pytest
import torch

from gfl.build import (
    ASSIGNERS,
    BOX_REPRESENTATIONS,
    QUALITIES,
    build_assigner,
    build_box_representation,
    build_criterion,
    build_detector,
    build_distillation,
    build_point_layout,
    build_quality,
)
from gfl.common.errors import UserError
from gfl.config import AssignConfig, Config, DGQPConfig, HeadConfig, PointsConfig
from gfl.config_file import config_from_dict
from gfl.method.assign import assign_atss, assign_fcos, assign_fovea, assign_max_iou, assign_tal
from gfl.method.box_representation import AnchorDeltaBox, DiracBox, GaussianBox, GeneralBox
from gfl.method.quality import DistributionGuidedQuality, JointQuality, SeparateQuality, VarifocalQuality

NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
LEGAL = [
    pair for pair in itertools.product(QUALITIES, BOX_REPRESENTATIONS) if pair[0] != "dgqp" or pair[1] == "general"
]
BOXES = {"dirac": DiracBox, "anchor_delta": AnchorDeltaBox, "gaussian": GaussianBox, "general": GeneralBox}


def make_config(**model):
    """Of a small model."""
    backbone = {"name": "resnet18", "weights": "none", "frozen_stages": -1}
    small = {"channels": 64, "num_convs": 1, "reg_max": 8}
    model |= {"backbone": backbone, "fpn": {"channels": 64} | model.get("fpn", {})}
    return config_from_dict({"model": model | {"head": small | model.get("head", {})}}, "test")


@pytest.mark.parametrize(
    ("table", "config", "key"),
    [(QUALITIES, HeadConfig, "quality"), (BOX_REPRESENTATIONS, HeadConfig, "box"), (ASSIGNERS, AssignConfig, "kind")],
)
def test_each_table_has_the_rows_that_the_config_allows(table, config, key):
    assert tuple(table) == typing.get_args(typing.get_type_hints(config)[key])


# --- combinations -----------------------------------------------------------------------------------------------------


def head_and_criterion(quality, box):
    """Both parts of a built detector behind the pyramid, with random weights everywhere, and the criterion."""
    config = make_config(head={"quality": quality, "box": box, "conv_bias": True})
    with torch.device("meta"):  # of the backbone only shapes are needed
        model = build_detector(config, 5)
    torch.manual_seed(0)
    for part in (model.head, model.quality):
        part.to_empty(device="cpu")
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    box_repr = build_box_representation(config.model.head)
    return model.head, build_criterion(config, model.quality, box_repr)


@pytest.mark.parametrize("with_boxes", [True, False])
@pytest.mark.parametrize(("quality", "box"), LEGAL)
def test_every_parameter_of_every_combination_gets_a_finite_gradient(quality, box, with_boxes):
    """Without boxes too: gradient averaging would wait forever for a process whose images are all empty."""
    head, criterion = head_and_criterion(quality, box)
    boxes = torch.tensor([[10.0, 12.0, 60.0, 70.0], [4.0, 30.0, 30.0, 90.0], [0.0, 0.0, 96.0, 96.0]])
    first = (boxes, torch.tensor([0, 3, 4])) if with_boxes else (NO_BOXES, NO_LABELS)
    targets = oracles.pad_targets([first[0], NO_BOXES], [first[1], NO_LABELS])
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 64, *size, generator=generator) for size in oracles.feature_sizes(96, 96)]
    losses = criterion(criterion.quality(head(features)), targets, torch.tensor([[96, 96], [80, 70]]))
    own = {"general": ["dfl"], "gaussian": ["nll"]}.get(box, [])
    assert list(losses) == ["cls", "box", *own, *(["quality"] if "branch" in quality else [])]
    for name, loss in losses.items():
        assert loss.isfinite()
        learns_background = name == "cls" or (name, quality) == ("quality", "iou_branch_negatives")
        assert (loss != 0) == (with_boxes or learns_background), name
    sum(losses.values()).backward()
    for name, parameter in itertools.chain(head.named_parameters(), criterion.quality.named_parameters()):
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any() or not with_boxes, name


def test_without_boxes_every_parameter_of_the_whole_network_gets_a_gradient():
    config = make_config()
    model = build_detector(config, 3).train()
    criterion = build_criterion(config, model.quality, model.box_repr)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    targets = oracles.pad_targets([NO_BOXES] * 2, [NO_LABELS] * 2)
    losses = criterion(model(images), targets, torch.tensor([[64, 96], [50, 60]]))
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(("quality", "box"), LEGAL)
def test_the_head_has_the_outputs_that_quality_and_box_need(quality, box):
    with torch.device("meta"):
        model = build_detector(make_config(head={"quality": quality, "box": box}), 3)
        output = model(torch.zeros(1, 3, 64, 64))
    outputs_per_side = {"dirac": 1, "anchor_delta": 1, "gaussian": 2, "general": 9}[box]
    assert output.reg_pred.shape[2:] == (4, outputs_per_side)
    assert (model.head.quality_out is not None) == ("_branch" in quality)
    assert (output.quality_logits is not None) == ("_branch" in quality or quality == "dgqp")


def test_detectors_that_differ_in_a_row_start_with_the_same_weights_in_what_they_share():
    """Pairs of rows with one seed: their difference is not one of initial weights."""
    models = {}
    for quality, box in LEGAL:
        torch.manual_seed(3)
        models[quality, box] = build_detector(make_config(head={"quality": quality, "box": box}), 3).state_dict()
    first, shapes = models["joint", "general"], set()
    for weights in models.values():
        shared = {name for name in weights.keys() & first.keys() if weights[name].shape == first[name].shape}
        assert [name for name in shared if not weights[name].equal(first[name])] == []
        shapes |= weights.keys() - shared
    assert shapes == {
        "head.reg_out.weight",
        "head.reg_out.bias",
        "head.quality_out.weight",
        "head.quality_out.bias",
    } | {f"quality.{layer}.{kind}" for layer in ("hidden", "out") for kind in ("weight", "bias")}
    branches = [weights for (quality, _), weights in models.items() if "_branch" in quality]
    assert all(weights["head.quality_out.weight"].equal(branches[0]["head.quality_out.weight"]) for weights in branches)


@pytest.mark.parametrize(("box", "set_to", "start"), [("dirac", 3, 3), ("gaussian", 3, 3), ("dirac", 0, 0)])
def test_sides_start_where_the_config_says(box, set_to, start):
    model = build_detector(make_config(head={"box": box, "initial_distance": set_to}), 3)
    output = model(torch.zeros(1, 3, 64, 64))
    distances = model.box_repr.distances(output.reg_pred)
    torch.testing.assert_close(distances, torch.full_like(distances, start), rtol=0, atol=0.2)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", ["dirac", "gaussian", "anchor_delta"])
def test_what_needs_distributions_is_refused_without_them(refusal, box):
    assert refusal(build_detector, make_config(head={"quality": "dgqp", "box": box}), 3).startswith(
        "model.head.quality"
    )
    config = make_config(head={"box": box})
    peak = dataclasses.replace(config, eval=dataclasses.replace(config.eval, decode="peak"))
    assert refusal(build_detector, peak, 3).startswith("eval.decode")


@pytest.mark.parametrize("box", ["general", "anchor_delta"])
def test_boxes_with_a_start_of_their_own_take_no_other(box):
    with pytest.raises(UserError) as caught:
        build_detector(make_config(head={"box": box, "initial_distance": 8.0}), 3)
    assert caught.value.code == "initial_distance"


def test_the_predictor_reads_at_most_as_many_probabilities_as_there_are_bins(refusal):
    build_quality(HeadConfig(quality="dgqp", reg_max=7, dgqp=DGQPConfig(topk=8)), beta=2.0)
    message = refusal(build_quality, HeadConfig(quality="dgqp", reg_max=7, dgqp=DGQPConfig(topk=9)), beta=2.0)
    assert message.startswith("model.head.dgqp.topk")


@pytest.mark.parametrize("offset", [(0.5,), (0.5,) * 6])
def test_there_are_as_many_offsets_as_levels(refusal, offset):
    assert build_point_layout(PointsConfig(offset=(0.5,) * 5)).offset == (0.5,) * 5
    assert refusal(build_point_layout, PointsConfig(offset=offset)).startswith("model.points.offset")


# --- values -----------------------------------------------------------------------------------------------------------


def test_qualities_are_built_as_the_config_says():
    for name, arguments in {
        "none": (None, False, False),
        "centerness_branch": ("centerness", False, False),
        "iou_branch": ("iou", False, False),
        "centerness_guided": ("centerness", True, False),
        "iou_guided": ("iou", True, False),
        "iou_branch_negatives": ("iou", False, True),
    }.items():
        quality = build_quality(HeadConfig(quality=name), beta=2.0)
        assert (type(quality), quality.by, quality.guide, quality.negatives) == (SeparateQuality, *arguments)
        expected = None if arguments[1] or name == "none" else 0.01 if arguments[2] else 0.5
        assert quality.branch_prior == expected
    assert type(build_quality(HeadConfig(quality="varifocal"), beta=2.5)) is VarifocalQuality
    joint = build_quality(HeadConfig(), beta=2.5)
    assert (type(joint), joint.beta) == (JointQuality, 2.5)
    dgqp = build_quality(HeadConfig(quality="dgqp", dgqp=DGQPConfig(topk=3, hidden=8, add_mean=False)), beta=1.0)
    assert isinstance(dgqp, DistributionGuidedQuality)
    assert (dgqp.beta, dgqp.topk, dgqp.add_mean, dgqp.hidden.weight.shape) == (1.0, 3, False, (8, 12))


def test_box_representations_are_built_as_the_config_says():
    built = {name: build_box_representation(HeadConfig(box=name, reg_max=7, delta=0.25)) for name in BOXES}
    assert {name: type(box) for name, box in built.items()} == BOXES
    assert (built["general"].num_outputs, built["general"].delta, built["general"].peak) == (8, 0.25, False)
    assert build_box_representation(HeadConfig(), decode="peak").peak


def test_assigners_are_built_as_the_config_says():
    for config, function, options in [
        (AssignConfig(topk=5, anchor_scale=4.0), assign_atss, {"topk": 5, "anchor_scale": 4.0, "reach": None}),
        (AssignConfig(range_aware=True), assign_atss, {"topk": 9, "anchor_scale": 8.0, "reach": 3.5}),
        (AssignConfig(kind="fcos", center_radius=2.5), assign_fcos, {"center_radius": 2.5}),
        (AssignConfig(kind="fovea"), assign_fovea, {}),
        (AssignConfig(kind="max_iou", anchor_scale=4.0), assign_max_iou, {"anchor_scale": 4.0}),
        (AssignConfig(kind="tal"), assign_tal, {"topk": 13}),
        (AssignConfig(kind="tal", topk=3, tal_topk=5), assign_tal, {"topk": 5}),
    ]:
        assigner = functools.partial(
            build_assigner(config, HeadConfig(reg_max=7, delta=0.5))
        )  # also where it is the plain function
        assert (assigner.func, assigner.keywords) == (function, options)


@pytest.mark.parametrize(
    ("kind", "box"),
    [("fcos", "general"), ("fovea", "general"), ("max_iou", "general"), ("tal", "general"), ("atss", "dirac")],
)
def test_range_aware_assignment_is_refused_where_it_means_nothing(kind, box, refusal):
    message = refusal(build_assigner, AssignConfig(kind=kind, range_aware=True), HeadConfig(box=box))
    assert message.code == "range_aware"
    assert (kind if kind != "atss" else box) in message


def test_accumulated_passes_are_refused_where_points_are_chosen_by_predictions(refusal):
    for kind, accumulate in (("tal", 1), ("atss", 2)):
        config = config_from_dict({"assign": {"kind": kind}, "optim": {"accumulate": accumulate}}, "test")
        build_criterion(config, JointQuality(), GeneralBox())
    config = config_from_dict({"assign": {"kind": "tal"}, "optim": {"accumulate": 2}}, "test")
    message = refusal(build_criterion, config, JointQuality(), GeneralBox())
    assert message.code == "accumulated_predictions"
    assert message.startswith("optim.accumulate")


@pytest.mark.parametrize(
    ("tree", "code"),
    [
        ({"model": {"head": {"box": "dirac"}}}, "no_distributions"),
        ({"assign": {"kind": "fcos"}, "loss": {"distill": {"region": "both"}}}, "region"),
        ({"assign": {"kind": "fovea"}, "loss": {"distill": {"region": "valuable"}}}, "region"),
    ],
    ids=str,
)
def test_distillation_is_refused_where_it_means_nothing_even_before_a_teacher_is_loaded(tree, code, refusal):
    config = config_from_dict(tree, "test")
    assert build_distillation(config, None) is None
    distill = dataclasses.replace(config.loss.distill, teacher="any")
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, distill=distill))
    assert refusal(build_distillation, config, None).code == code


def test_distillation_is_built_as_the_config_says():
    distill = {"teacher": "any", "weight": 3.0, "temperature": 2.0, "region": "both"}
    tree = {"model": {"head": {"reg_max": 7, "delta": 0.5}}, "assign": {"topk": 5, "range_aware": True}}
    built = build_distillation(config_from_dict(tree | {"loss": {"distill": distill}}, "test"), lambda images: images)
    assert (built.weight, built.temperature, built.main) == (3.0, 2.0, True)
    assert built.valuable.keywords == {"topk": 5, "anchor_scale": 8.0, "reach": 3.5}
    for region, main, valuable in (("main", True, False), ("valuable", False, True)):
        config = config_from_dict({"loss": {"distill": distill | {"region": region}}}, "test")
        built = build_distillation(config, lambda images: images)
        assert (built.main, built.valuable is not None) == (main, valuable)


def test_the_criterion_takes_its_weights_from_the_config():
    weights = {"cls_weight": 3.0, "box_weight": 4.0, "dfl_weight": 5.0, "quality_weight": 6.0}
    config = config_from_dict({"assign": {"topk": 5}, "loss": weights}, "test")
    quality, box_repr = JointQuality(), GeneralBox()
    criterion = build_criterion(config, quality, box_repr)
    assert {name: getattr(criterion, name) for name in weights} == weights
    assert (criterion.quality, criterion.box_repr, criterion.assigner.keywords["topk"]) == (quality, box_repr, 5)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_network_is_built_as_the_config_says(wanted):
    points = {"strides": [8, 16, 32, 64], "offset": 0.5} if wanted else {}
    with torch.device("meta"):
        model = build_detector(
            make_config(points=points, head={"conv_bias": wanted}, fpn={"extra_relu": wanted, "channels": 96}), 3
        )
    assert (model.head.cls_tower[0].bias is not None) == (model.head.reg_tower[0].bias is not None) == wanted
    assert model.fpn.extra_relu == wanted
    assert model.fpn.lateral[0].out_channels == model.head.cls_tower[0].in_channels == 96
    layout = ((8, 16, 32, 64), 0.5) if wanted else ((8, 16, 32, 64, 128), 0.0)
    assert (model.head.layout, 3 + len(model.fpn.extra)) == (layout, len(layout[0]))
    assert model.head.num_classes == 3


def test_the_backbone_is_built_as_the_config_says():
    config = config_from_dict({"model": {"backbone": {"dcn": "v2", "dcn_stages": ["c5"], "norm_eval": False}}}, "test")
    with torch.device("meta"):
        built = build_detector(config, 3).train()
        default = build_detector(Config(), 3).train()
    assert (built.backbone.norm_eval, default.backbone.norm_eval) == (False, True)
    offsets = [name for name, _ in built.backbone.named_modules() if name.endswith("conv_offset")]
    assert offsets == [f"layer4.{block}.conv2.conv_offset" for block in range(3)]
    assert not any(p.requires_grad for p in built.backbone.layer1.parameters())
    assert all(p.requires_grad for p in built.backbone.layer2.parameters())
