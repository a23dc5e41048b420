"""Builds the parts of a detector from a config: the one module that knows both.

Each axis of the ablations is one table, whose keys are what the config names. A new row is a class or function in
`gfl.method` and an entry here and in `gfl.config`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gfl.common.errors import UserError
from gfl.config import AssignConfig, Config, HeadConfig, PointsConfig
from gfl.method.assign import assign_atss, assign_fcos, assign_fovea, assign_max_iou, assign_tal
from gfl.method.box_representation import AnchorDeltaBox, BoxRepresentation, DiracBox, GaussianBox, GeneralBox
from gfl.method.criterion import Criterion
from gfl.method.distillation import Distillation, valuable_region
from gfl.method.points import PointLayout
from gfl.method.quality import DistributionGuidedQuality, JointQuality, Quality, SeparateQuality, VarifocalQuality
from gfl.model.backbone import Backbone
from gfl.model.detector import DenseDetector
from gfl.model.fpn import FPN
from gfl.model.head import GFLHead
from gfl.structures import Assignment, PointGrid, Predict, Targets

Assigner = Callable[[PointGrid, Targets, Tensor, Predict | None], Assignment]

# Axis 1, `model.head.quality`: the rows of table 1(a) in its order, then GFLv2's and others.
QUALITIES: dict[str, Callable[[HeadConfig, float], Quality]] = {
    "none": lambda head, beta: SeparateQuality(),
    "centerness_branch": lambda head, beta: SeparateQuality(by="centerness"),
    "iou_branch": lambda head, beta: SeparateQuality(by="iou"),
    "centerness_guided": lambda head, beta: SeparateQuality(by="centerness", guide=True),
    "iou_guided": lambda head, beta: SeparateQuality(by="iou", guide=True),
    "joint": lambda head, beta: JointQuality(beta=beta),
    "dgqp": lambda head, beta: DistributionGuidedQuality(
        beta=beta,
        topk=head.dgqp.topk,
        hidden=head.dgqp.hidden,
        add_mean=head.dgqp.add_mean,
        kaiming=head.dgqp.init == "kaiming",
    ),
    "varifocal": lambda head, beta: VarifocalQuality(),
    "iou_branch_negatives": lambda head, beta: SeparateQuality(by="iou", negatives=True),
}

# Axis 2, `model.head.box`: the rows of table 2(a), and ATSS's anchor deltas. `general` is trained with DFL unless
# `loss.dfl_weight` is 0.
BOX_REPRESENTATIONS: dict[str, Callable[[HeadConfig, bool], BoxRepresentation]] = {
    "dirac": lambda head, peak: DiracBox(start=head.initial_distance),
    "anchor_delta": lambda head, peak: AnchorDeltaBox(),
    "gaussian": lambda head, peak: GaussianBox(start=head.initial_distance),
    "general": lambda head, peak: GeneralBox(reg_max=head.reg_max, delta=head.delta, peak=peak),
}

# Axis 3, `assign.kind`.
ASSIGNERS: dict[str, Callable[[AssignConfig, float | None], Assigner]] = {
    "atss": lambda config, reach: partial(assign_atss, topk=config.topk, anchor_scale=config.anchor_scale, reach=reach),
    "fcos": lambda config, reach: partial(assign_fcos, center_radius=config.center_radius),
    "fovea": lambda config, reach: assign_fovea,
    "max_iou": lambda config, reach: partial(assign_max_iou, anchor_scale=config.anchor_scale),
    "tal": lambda config, reach: partial(assign_tal, topk=config.tal_topk),
}


def build_quality(head: HeadConfig, *, beta: float) -> Quality:
    """The quality estimation that the config names; raises `UserError` where it does not fit the rest of the head."""
    if head.quality == "dgqp" and head.box != "general":
        raise UserError(
            f"model.head.quality: dgqp reads the distributions of box: general; box: {head.box} predicts none"
        )
    if head.quality == "dgqp" and head.dgqp.topk > head.reg_max + 1:
        raise UserError(f"model.head.dgqp.topk: {head.dgqp.topk} are more than the {head.reg_max + 1} bins of a side")
    return QUALITIES[head.quality](head, beta)


def build_box_representation(head: HeadConfig, *, decode: str = "expectation") -> BoxRepresentation:
    """The box representation that the config names; raises `UserError` where it has no such `decode` or start."""
    if decode == "peak" and head.box != "general":
        raise UserError(f"eval.decode: peak needs the distributions of box: general; box: {head.box} predicts none")
    if head.initial_distance and head.box not in ("dirac", "gaussian"):
        raise UserError(
            f"model.head.initial_distance: box: {head.box} has a start of its own, half its range for general and 4 "
            "strides for anchor_delta; set it to 0",
            code="initial_distance",
        )
    return BOX_REPRESENTATIONS[head.box](head, decode == "peak")


def needs_predictions(config: AssignConfig) -> bool:
    """Whether points are chosen by what they predict, so that nothing is known of them before a forward pass."""
    return config.kind == "tal"


def build_assigner(config: AssignConfig, head: HeadConfig) -> Assigner:
    """``(grid, targets, inside, predict) -> Assignment`` as the config names it (`gfl.method.assign`).

    Raises `UserError` for `assign.range_aware` where the assigner has no candidates or the boxes no range.
    """
    return ASSIGNERS[config.kind](config, _reach(config, head))


def _reach(config: AssignConfig, head: HeadConfig) -> float | None:
    """The farthest side, in strides, of a box that a point may learn; None for any. Raises as `build_assigner`."""
    if not config.range_aware:
        return None
    if config.kind != "atss" or head.box != "general":
        raise UserError(
            f"assign.range_aware needs assign.kind: atss and model.head.box: general, not {config.kind} and "
            f"{head.box}: only ATSS has candidates to leave out, and only distributions end at a largest distance; "
            "set assign.range_aware=false",
            code="range_aware",
        )
    return head.reg_max * head.delta


def build_point_layout(points: PointsConfig) -> PointLayout:
    """Strides and offsets of the pyramid's points; raises `UserError` for offsets that do not match the levels."""
    if isinstance(points.offset, tuple) and len(points.offset) != len(points.strides):
        raise UserError(f"model.points.offset: {len(points.offset)} values for {len(points.strides)} levels")
    return PointLayout(points.strides, points.offset)


def build_distillation(config: Config, teacher: Callable[[Tensor], Tensor] | None) -> Distillation | None:
    """Distillation as the config names it, from a `teacher` as `Distillation` takes it; None without one.

    Raises `UserError` where the student has no distributions, or the region needs another assigner.
    """
    distill, head, assign = config.loss.distill, config.model.head, config.assign
    if distill.teacher == "none":
        return None
    if head.box != "general":
        raise UserError(
            f"loss.distill.teacher: it teaches the distributions of box: general; box: {head.box} predicts none",
            code="no_distributions",
        )
    if distill.region != "main" and assign.kind != "atss":
        raise UserError(
            f"loss.distill.region: {distill.region} needs assign.kind: atss, not {assign.kind}: only ATSS has a "
            "threshold per box, around which the region lies; set loss.distill.region=main",
            code="region",
        )
    if teacher is None:  # the config alone is checked
        return None
    valuable = partial(valuable_region, topk=assign.topk, anchor_scale=assign.anchor_scale, reach=_reach(assign, head))
    return Distillation(
        teacher,
        weight=distill.weight,
        temperature=distill.temperature,
        main=distill.region != "valuable",
        valuable=None if distill.region == "main" else valuable,
    )


def build_criterion(
    config: Config, quality: Quality, box_repr: BoxRepresentation, teacher: Callable[[Tensor], Tensor] | None = None
) -> Criterion:
    """The criterion that `config` describes, around the quality and box representation of its detector.

    `teacher` as `build_distillation` takes it: what `config` names, already loaded. Raises `UserError` for accumulated
    passes with an assigner that needs predictions, and as `build_distillation` does.
    """
    if needs_predictions(config.assign) and config.optim.accumulate > 1:
        raise UserError(
            f"optim.accumulate: {config.optim.accumulate} with assign.kind: {config.assign.kind}: the passes of a step "
            "share its number of positives, which is not known before the last pass where points are chosen by what "
            "they predict; set optim.accumulate=1, if need be with a smaller optim.batch",
            code="accumulated_predictions",
        )
    loss = config.loss
    return Criterion(
        build_assigner(config.assign, config.model.head),
        quality,
        box_repr,
        cls_weight=loss.cls_weight,
        box_weight=loss.box_weight,
        dfl_weight=loss.dfl_weight,
        quality_weight=loss.quality_weight,
        distillation=build_distillation(config, teacher),
    )


def build_detector(config: Config, num_classes: int) -> DenseDetector:
    """A detector as `config` describes it, with random weights; raises `UserError` for parts that do not fit."""
    model = config.model
    layout = build_point_layout(model.points)
    # What some rows of a table add is drawn apart, so that all rows start with the same weights in what they share.
    with torch.random.fork_rng(devices=()):
        quality = build_quality(model.head, beta=config.loss.qfl_beta)
    box_repr = build_box_representation(model.head, decode=config.eval.decode)
    backbone = Backbone(
        model.backbone.name,
        frozen_stages=model.backbone.frozen_stages,
        norm_eval=model.backbone.norm_eval,
        dcn=model.backbone.dcn,
        dcn_stages=model.backbone.dcn_stages,
    )
    num_extra = len(layout.strides) - len(backbone.out_channels)
    fpn = FPN(backbone.out_channels, model.fpn.channels, num_extra=num_extra, extra_relu=model.fpn.extra_relu)
    head = GFLHead(
        num_classes,
        box_repr.initial,
        layout,
        in_channels=model.fpn.channels,
        channels=model.head.channels,
        num_convs=model.head.num_convs,
        conv_bias=model.head.conv_bias,
        quality_prior=quality.branch_prior,
    )
    return DenseDetector(backbone, fpn, head, quality, box_repr)
