"""Typed configuration: frozen dataclasses with every key, its type, default and range."""

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from gfl.common.dataclass_from_dict import Check, above, at_least, between

# Limits of sizes are far beyond use: a larger value is a typing error, refused before memory runs out.
Count = Annotated[int, between(1, 10**6)]
Width = Annotated[int, between(1, 8192)]  # channels
Side = Annotated[int, between(1, 2**15)]  # pixels
NotNegative = Annotated[float, at_least(0)]
Probability = Annotated[float, Check("in [0, 1]", lambda value: 0 <= value <= 1)]

DEFAULT_MAX_PIXELS = 2**28  # 16384 x 16384, more than cameras make; 0.8 GB when decoded
MAX_REG_MAX = 1000
P3_TO_P7 = (8, 16, 32, 64, 128)  # strides


def _doubles_from_8(strides: tuple[int, ...]) -> bool:
    return 3 <= len(strides) <= 10 and strides == tuple(8 * 2**level for level in range(len(strides)))


def _rises(values: tuple) -> bool:
    return list(values) == sorted(set(values))


def _are_fractions(offset: float | tuple[float, ...]) -> bool:
    offsets = offset if isinstance(offset, tuple) else (offset,)
    return len(offsets) > 0 and all(0 <= value < 1 for value in offsets)


def _is_size_or_range(side: int | tuple[int, ...]) -> bool:
    sides = (side,) if isinstance(side, int) else side
    return len(sides) in (1, 2) and 0 < sides[0] <= sides[-1] <= 2**15


def _are_scales(scales: tuple[float, ...]) -> bool:
    return len(scales) > 0 and len(set(scales)) == len(scales) and all(0.1 <= scale <= 4 for scale in scales)


def _is_depth_or_range(depth: int | tuple[float, ...]) -> bool:
    if isinstance(depth, int):
        return depth == 0 or 8 <= depth <= 16
    return len(depth) == 2 and -1e30 < depth[0] < depth[1] < 1e30 and depth[1] - depth[0] > 1e-30


def _is_count_or_share(steps: float) -> bool:
    return 0 <= steps <= 10**9 and (steps < 1 or steps.is_integer())


def _can_be_a_path(text: str) -> bool:
    return len(os.fsencode(text)) < 4096 and all(len(os.fsencode(name)) <= 255 for name in text.split("/"))


FilePath = Annotated[str, Check("a path, whose names have at most 255 bytes", _can_be_a_path)]


@dataclass(frozen=True)
class BackboneConfig:
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x4d"] = "resnet50"
    weights: FilePath = "torchvision"  # "torchvision" downloads ImageNet's, "none" is from scratch, else a file
    frozen_stages: Literal[-1, 0, 1, 2, 3, 4] = 1  # -1 nothing, 0 the stem, 1 also the first stage, ...
    norm_eval: bool = True  # BatchNorm keeps its running statistics
    dcn: Literal["none", "v1", "v2"] = "none"  # deformable convolutions
    dcn_stages: Annotated[tuple[Literal["c2", "c3", "c4", "c5"], ...], Check("rising", _rises)] = ()


@dataclass(frozen=True)
class FPNConfig:
    channels: Width = 256
    extra_relu: bool = False  # between P6 and P7, as in FCOS


@dataclass(frozen=True)
class DGQPConfig:
    """GFLv2's quality predictor, for `quality: dgqp`."""

    topk: Count = 4  # largest probabilities of each side that it gets
    hidden: Width = 64
    add_mean: bool = True  # it also gets their mean
    init: Literal["normal", "kaiming"] = "normal"  # of its weights: the reference's, or for AdamW


@dataclass(frozen=True)
class HeadConfig:
    # GroupNorm's 32 groups need two channels each: one alone has no deviation on a 1 x 1 map.
    channels: Annotated[int, Check("a multiple of 32 from 64 to 8192", lambda n: 64 <= n <= 8192 and n % 32 == 0)] = 256
    num_convs: Annotated[int, between(1, 100)] = 4
    conv_bias: bool = False  # of the towers' convolutions, as in FCOS
    # How quality is estimated (gfl/method/quality.py).
    quality: Literal[
        "none",
        "centerness_branch",
        "iou_branch",
        "centerness_guided",
        "iou_guided",
        "joint",
        "dgqp",
        "varifocal",
        "iou_branch_negatives",
    ] = "joint"
    dgqp: DGQPConfig = field(default_factory=DGQPConfig)
    box: Literal["dirac", "anchor_delta", "gaussian", "general"] = "general"  # gfl/method/box_representation.py
    reg_max: Annotated[int, between(1, MAX_REG_MAX)] = 16
    delta: Annotated[float, above(0)] = 1.0
    initial_distance: NotNegative = 0.0  # from a point to its box's sides, in strides, for dirac and gaussian


@dataclass(frozen=True)
class PointsConfig:
    strides: Annotated[tuple[int, ...], Check("[8, 16, 32, ...], each twice the last", _doubles_from_8)] = P3_TO_P7
    # In strides: one for all levels, or one per level.
    offset: Annotated[float | tuple[float, ...], Check("in [0, 1), or a list of such", _are_fractions)] = 0.0


@dataclass(frozen=True)
class ModelConfig:
    weights: FilePath = "none"  # a checkpoint of this codebase, or a run folder, to start from; then not the backbone's
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FPNConfig = field(default_factory=FPNConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    points: PointsConfig = field(default_factory=PointsConfig)


@dataclass(frozen=True)
class AssignConfig:
    kind: Literal["atss", "fcos", "fovea", "max_iou", "tal"] = "atss"  # gfl/method/assign.py
    topk: Count = 9  # atss: candidates of a box per level
    tal_topk: Count = 13  # tal: candidates of a box over all levels
    range_aware: bool = False  # atss with box: general: large boxes go to levels whose bins reach their sides
    anchor_scale: Annotated[float, above(0)] = 8.0  # atss, max_iou: side of the square around a point, in strides
    center_radius: Annotated[float, above(0)] = 1.5  # fcos, in strides


@dataclass(frozen=True)
class DistillConfig:
    """Localisation distillation (gfl/method/distillation.py)."""

    teacher: FilePath = "none"  # a checkpoint of this codebase, or a run folder
    weight: NotNegative = 0.25  # against box terms of one normaliser; docs/deviations.md has the reference's
    temperature: Annotated[float, between(0.01, 1000)] = 10.0
    # Positives, the valuable localisation region around them (atss), or both.
    region: Literal["main", "valuable", "both"] = "main"


@dataclass(frozen=True)
class LossConfig:
    # Between 0 and 1 the gradient is infinite where score and target meet.
    qfl_beta: Annotated[float, Check("0 or at least 1", lambda beta: beta == 0 or beta >= 1)] = 2.0
    cls_weight: NotNegative = 1.0
    box_weight: NotNegative = 2.0
    dfl_weight: NotNegative = 0.25  # of the box representation's own loss: DFL, or the Gaussian's likelihood
    quality_weight: NotNegative = 1.0  # of a quality branch
    distill: DistillConfig = field(default_factory=DistillConfig)


@dataclass(frozen=True)
class SplitConfig:
    annotations: FilePath = ""  # COCO-format json
    images: FilePath = ""  # the folder its file names are relative to


@dataclass(frozen=True)
class DataConfig:
    train: SplitConfig = field(default_factory=SplitConfig)
    val: SplitConfig = field(default_factory=SplitConfig)
    # One size, or a range [low, high] of which each training image draws one.
    short_side: Annotated[int | tuple[int, ...], Check("a size or a range [low, high]", _is_size_or_range)] = 800
    long_side: Side = 1333
    eval_short_side: Annotated[int, between(0, 2**15)] = 0  # in evaluation; 0: the highest short_side
    flip: Probability = 0.5
    augment: tuple[dict[str, Any], ...] = ()  # albumentations transforms: [{name: ..., arguments}]
    keep_empty: bool = False  # train on images without boxes as well
    # Files with more than 8 bits per channel: the bits in use, or the values [low, high] that become 0 and 255; 0: the
    # highest 8 of 16 bits.
    bit_depth: Annotated[int | tuple[float, ...], Check("0, 8 to 16, or a range [low, high]", _is_depth_or_range)] = 0
    max_pixels: Annotated[int, between(1, 2**40)] = DEFAULT_MAX_PIXELS  # of an image file; a larger one is a bad image
    workers: Annotated[int, between(0, 1000)] = 4  # loader processes per training process
    # Those of training wait for the next epoch while the run evaluates, instead of being started again after it.
    persistent_workers: bool = True
    on_bad_image: Literal["stop", "skip"] = "stop"  # in training; skip: another image in its place
    # Regions to ignore are crowds, boxes marked so (`ignore`, `difficult`, ...) and all boxes of these classes. Their
    # points learn background, as in the reference, or nothing (mask), where no object claims them.
    ignored: Literal["background", "mask"] = "background"
    ignore_classes: tuple[str, ...] = ()  # names of the json that are no classes of the model

    @property
    def short_sides(self) -> tuple[int, int]:
        """Lowest and highest short side of training images."""
        sides = (self.short_side,) if isinstance(self.short_side, int) else self.short_side
        return sides[0], sides[-1]

    @property
    def short_side_in_eval(self) -> int:
        return self.eval_short_side or self.short_sides[1]


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, above(0)] = 0.01  # at base_batch images per step; scaled linearly
    base_batch: Count = 16
    batch: Count = 16  # images per step over all processes and accumulated passes
    accumulate: Count = 1  # passes per step
    momentum: Probability = 0.9
    weight_decay: NotNegative = 1.0e-4
    bias_lr_factor: Annotated[float, above(0)] = 1.0  # on the rate of biases; V1's recipe has 2
    bias_decay_factor: NotNegative = 1.0  # on their weight decay; V1's recipe has 0
    epochs: Count = 12
    # A small data set is trained for more epochs, until they have so many steps; `steps` and eval.interval grow with
    # them. 0: never.
    min_steps: Annotated[int, between(0, 10**6)] = 0
    decay: Literal["step", "cosine"] = "step"
    # Epochs after which the rate is divided by 10 (decay: step).
    steps: Annotated[tuple[int, ...], Check("rising", _rises)] = (8, 11)
    # A number of steps, or below 1 a share of all.
    warmup_steps: Annotated[float, Check("whole, or a share below 1", _is_count_or_share)] = 500
    warmup_ratio: NotNegative = 0.001
    clip_norm: NotNegative = 0.0  # largest gradient norm, 0 for no limit
    # Share that an average of the weights keeps of itself per step; it is what is evaluated and saved. 0: none.
    ema: Annotated[float, Check("at least 0 and below 1", lambda value: 0 <= value < 1)] = 0.0
    amp: Literal["none", "auto", "bf16", "fp16"] = "none"  # auto: bf16 where the hardware has it, else none
    # Layout of images and weights. Auto: channels_last with autocast, whose kernels want it, else as torch has it.
    channels_last: Literal["auto", True, False] = "auto"
    # torch.compile of a step's losses, by torch's names: `default` is one graph for all sizes; `reduce-overhead` also
    # replays CUDA graphs, one per size of images. Not by default: compiling takes minutes, and wants a compiler.
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    # Arithmetic of float32 on a GPU: with 10 bits after the point instead of 23, which torch by itself allows to
    # convolutions. Three bits more than bf16 has, and several times the speed of all 23.
    tf32: bool = True
    # cuDNN tries its algorithms on every new size. Not by default: COCO's images have hundreds of sizes, and what is
    # fastest differs from start to start, so that a resumed run would not repeat to the bit.
    cudnn_benchmark: bool = False
    # What follows a loss or gradient that is not finite. Rewind: once in a run, back to the newest checkpoint from
    # before the loss rose or collapsed, and on from there at a tenth of the rate (gfl/training/divergence.py).
    on_divergence: Literal["stop", "rewind"] = "stop"


@dataclass(frozen=True)
class EvalConfig:
    interval: Count = 1  # epochs
    patience: Annotated[int, between(0, 10**6)] = 0  # evaluations without a better AP that end a run; 0: none do
    batch: Count = 1  # images per pass and process at most: those of a pass have one padded size
    score_thresh: Probability = 0.05
    pre_nms_topk: Count = 1000
    nms_iou: Probability = 0.6
    max_detections: Count = 100
    amp: Literal["run", "none", "auto", "bf16", "fp16"] = "run"  # of the network, as optim.amp; run: what that says
    decode: Literal["expectation", "peak"] = "expectation"  # peak: a side lies at its distribution's highest mode
    # Test-time augmentation: candidates are found in several views of each image, then go through one NMS. The views
    # have these multiples of the size in evaluation (of both its limits); with tta_flip each is there mirrored as well.
    tta_scales: Annotated[tuple[float, ...], Check("factors from 0.1 to 4, each once", _are_scales)] = (1.0,)
    tta_flip: bool = False
    backend: Literal["auto", "pycocotools", "hotcoco"] = "auto"  # of the metrics; auto: hotcoco if it is installed

    @property
    def num_views(self) -> int:
        """How often the network sees each image."""
        return len(self.tta_scales) * (1 + self.tta_flip)


@dataclass(frozen=True)
class LogConfig:
    interval: Count = 20  # steps between log lines
    images: Annotated[int, at_least(0)] = 4  # sample images per evaluation in TensorBoard


@dataclass(frozen=True)
class Config:
    """One experiment. Field names are the keys of the YAML files."""

    model: ModelConfig = field(default_factory=ModelConfig)
    assign: AssignConfig = field(default_factory=AssignConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    run_dir: FilePath = "runs/gfl"
    save_interval: Count = 1000  # steps between checkpoints within an epoch; there is always one after it
    seed: Annotated[int, at_least(0)] = 0
