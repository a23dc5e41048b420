"""Typed configuration: frozen dataclasses filled from YAML files that inherit, then from the command line. Strict."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from gfl.errors import UserError


@dataclass(frozen=True)
class BackboneConfig:
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    weights: str = "torchvision"  # "torchvision" downloads ImageNet's, "none" trains from scratch, else a file
    frozen_stages: Literal[-1, 0, 1, 2, 3, 4] = 1  # -1 nothing, 0 the stem, 1 also the first stage, ...
    norm_eval: bool = True  # BatchNorm keeps its running statistics


@dataclass(frozen=True)
class FPNConfig:
    channels: int = 256


@dataclass(frozen=True)
class HeadConfig:
    channels: int = 256
    num_convs: int = 4
    quality: str = "joint"  # gfl/quality.py
    box: str = "general"  # gfl/box_repr.py
    reg_max: int = 16
    delta: float = 1.0


@dataclass(frozen=True)
class PointsConfig:
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    offset: float = 0.0  # in strides


@dataclass(frozen=True)
class ModelConfig:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FPNConfig = field(default_factory=FPNConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    points: PointsConfig = field(default_factory=PointsConfig)


@dataclass(frozen=True)
class AssignConfig:
    kind: str = "atss"  # gfl/assign.py
    topk: int = 9
    anchor_scale: float = 8.0


@dataclass(frozen=True)
class LossConfig:
    qfl_beta: float = 2.0
    cls_weight: float = 1.0
    box_weight: float = 2.0
    dfl_weight: float = 0.25


@dataclass(frozen=True)
class SplitConfig:
    annotations: str = ""  # COCO-format json
    images: str = ""  # the folder its file names are relative to


@dataclass(frozen=True)
class DataConfig:
    train: SplitConfig = field(default_factory=SplitConfig)
    val: SplitConfig = field(default_factory=SplitConfig)
    short_side: int | tuple[int, ...] = 800  # or a range [low, high], drawn per training image; evaluation takes high
    long_side: int = 1333
    flip: float = 0.5  # probability
    augment: tuple[dict[str, Any], ...] = ()  # albumentations transforms: [{name: ..., arguments}]
    keep_empty: bool = False  # train on images without boxes as well
    workers: int = 4  # loader processes per training process

    @property
    def short_sides(self) -> tuple[int, int]:
        """Lowest and highest short side; evaluation takes the highest."""
        sides = (self.short_side,) if isinstance(self.short_side, int) else self.short_side
        return sides[0], sides[-1]


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01  # at base_batch images per step; scaled linearly
    base_batch: int = 16
    batch: int = 16  # images per step over all processes and accumulated passes
    accumulate: int = 1  # passes per step
    momentum: float = 0.9
    weight_decay: float = 1.0e-4
    epochs: int = 12
    decay: Literal["step", "cosine"] = "step"
    steps: tuple[int, ...] = (8, 11)  # epochs after which the rate is divided by 10 (decay: step)
    warmup_steps: int = 500
    warmup_ratio: float = 0.001
    clip_norm: float = 0.0  # largest gradient norm, 0 for no limit
    amp: Literal["none", "auto", "bf16", "fp16"] = "none"  # auto: bf16 where the hardware has it, else none
    channels_last: bool = False


@dataclass(frozen=True)
class EvalConfig:
    interval: int = 1  # epochs
    batch: int = 1  # images per pass and process
    score_thresh: float = 0.05
    pre_nms_topk: int = 1000
    nms_iou: float = 0.6
    max_detections: int = 100


@dataclass(frozen=True)
class LogConfig:
    interval: int = 50  # steps between log lines
    images: int = 4  # sample pictures per evaluation in TensorBoard


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
    run_dir: str = "runs/gfl"
    seed: int = 0


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, the files it inherits from (`base`, relative to it) and ``section.key=value`` overrides.

    Raises `UserError` naming the file and key for anything missing, misspelt, of the wrong type or out of range.
    """
    tree = merge(_read_with_bases(Path(path)), parse_overrides(overrides))
    return config_from_dict(tree, str(path))


def config_from_dict(tree: Mapping[str, Any], source: str) -> Config:
    """A `Config` from nested plain data such as `config_to_dict` returns; `source` is named in errors."""
    config = _build(Config, tree, source, "")
    _check_ranges(config, source)
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain data (dicts, lists, numbers, strings) that YAML can write and `config_from_dict` reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def save_config(config: Config, path: Path) -> None:
    """Write the whole config as YAML that `load_config` reads."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def config_differences(before: Mapping[str, Any], config: Config) -> list[str]:
    """``optim.lr: 0.01 -> 0.02`` for every key in which `config` differs from the plain data `before`."""

    def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in tree.items():
            entries |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        return entries

    old, new = flat(before), flat(config_to_dict(config))
    return [f"{key}: {old.get(key)} -> {new[key]}" for key in new if old.get(key) != new[key]]


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``["optim.lr=0.005"]`` -> ``{"optim": {"lr": 0.005}}``, checked against the known keys."""
    tree: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"command line: {override!r} is not of the form section.key=value")
        try:
            nested: Any = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"command line: {override!r}: the value is not YAML ({_one_line(error)})") from None
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _build(Config, nested, "command line", "")
        tree = merge(tree, nested)
    return tree


def _read_with_bases(path: Path, inheriting: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in inheriting:
        raise UserError(f"{path}: inherits from itself through `base`")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {_one_line(error)}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections, not {_describe(tree)}")
    base = tree.pop("base", None)
    _build(Config, tree, str(path), "")  # here, so that an error names the file the key stands in
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: base must be the path of a config, not {_describe(base)}")
    return merge(_read_with_bases(path.parent / base, (*inheriting, path.resolve())), tree)


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested plain data with the values of `over` in place of those of `under`."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _build(cls: type, tree: Any, source: str, prefix: str) -> Any:
    """An instance of dataclass `cls`, with every key and type of `tree` checked."""
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{source}: {prefix.rstrip('.') or 'config'} must be a section with keys, not {_describe(tree)}"
        )
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in tree.items():
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(hints)}"
            raise UserError(f"{source}: unknown key {prefix}{key}; {hint}")
        values[key] = _convert(hints[key], value, source, f"{prefix}{key}")
    return cls(**values)


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """`value` as the type `hint`; the only conversions are int to float and list to tuple."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, source, f"{key}.")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
        raise UserError(f"{source}: {key} must be one of {', '.join(map(str, args))}, not {_describe(value)}")
    if origin is types.UnionType:  # a number or a list of them
        hint = next(arg for arg in args if isinstance(value, list) == (typing.get_origin(arg) is tuple))
        return _convert(hint, value, source, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{source}: {key} must be a list like [1, 2], not {_describe(value)}")
        return tuple(_convert(args[0], entry, source, f"{key}[{index}]") for index, entry in enumerate(value))
    if origin is dict:
        hint = dict
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is hint:
        return value
    wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "text", dict: "a mapping"}[hint]
    raise UserError(f"{source}: {key} must be {wanted}, not {_describe(value)}{_number_hint(hint, value)}")


def _number_hint(hint: type, value: Any) -> str:
    """YAML reads ``1e-4`` as text; say how to write it."""
    if hint is not float or not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    mantissa, _, exponent = value.lower().partition("e")
    return f"; YAML reads this as text, write {mantissa}.0e{exponent}" if exponent else f"; write {number}"


def _describe(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_ranges(config: Config, source: str) -> None:
    head, points, data, optim = config.model.head, config.model.points, config.data, config.optim
    doubling = tuple(8 * 2**level for level in range(len(points.strides)))
    at_least_one = {
        "model.head.reg_max": head.reg_max,
        "assign.topk": config.assign.topk,
        "data.long_side": data.long_side,
        "optim.batch": optim.batch,
        "optim.base_batch": optim.base_batch,
        "optim.accumulate": optim.accumulate,
        "optim.epochs": optim.epochs,
        "eval.interval": config.eval.interval,
        "eval.batch": config.eval.batch,
        "eval.pre_nms_topk": config.eval.pre_nms_topk,
        "eval.max_detections": config.eval.max_detections,
        "log.interval": config.log.interval,
    }
    not_negative = {
        "model.head.num_convs": head.num_convs,
        "loss.qfl_beta": config.loss.qfl_beta,
        "data.workers": data.workers,
        "optim.warmup_steps": optim.warmup_steps,
        "optim.warmup_ratio": optim.warmup_ratio,
        "optim.weight_decay": optim.weight_decay,
        "optim.clip_norm": optim.clip_norm,
        "log.images": config.log.images,
        "seed": config.seed,
    }
    probabilities = {
        "data.flip": data.flip,
        "eval.score_thresh": config.eval.score_thresh,
        "eval.nms_iou": config.eval.nms_iou,
    }
    rules = [(value >= 1, f"{key} must be at least 1, not {value}") for key, value in at_least_one.items()]
    rules += [(value >= 0, f"{key} must not be negative: {value}") for key, value in not_negative.items()]
    rules += [(0 <= value <= 1, f"{key} must be in [0, 1], not {value}") for key, value in probabilities.items()]
    rules += [
        (
            len(doubling) >= 3 and points.strides == doubling,
            "model.points.strides must start 8, 16, 32 and go on doubling",
        ),
        (0 <= points.offset < 1, f"model.points.offset must be in [0, 1) strides, not {points.offset}"),
        (head.delta > 0, f"model.head.delta must be above 0, not {head.delta}"),
        # GroupNorm's 32 groups need two channels each: one alone has no deviation on a 1 x 1 map.
        (head.channels >= 64 and head.channels % 32 == 0, "model.head.channels must be a multiple of 32 from 64 on"),
        (0 < data.short_sides[0] <= data.short_sides[1], "data.short_side must be a size or a range [low, high]"),
        (optim.lr > 0, f"optim.lr must be above 0, not {optim.lr}"),
        (list(optim.steps) == sorted(optim.steps), "optim.steps must rise"),
    ]
    for holds, message in rules:
        if not holds:
            raise UserError(f"{source}: {message}")
