"""Generalized Focal Loss: a dense detector whose class score is its expected IoU, whose box sides are distributions.

The names below are the public ones. Each is imported when it is first used, so that ``import gfl`` costs nothing.
"""

import importlib
from typing import Any

_MODULES = {
    "Config": "gfl.config",
    "DenseDetector": "gfl.model.detector",
    "Detector": "gfl.evaluation.inference",
    "Prediction": "gfl.evaluation.inference",
    "Sides": "gfl.evaluation.inference",
    "UserError": "gfl.common.errors",
    "build_criterion": "gfl.build",
    "build_detector": "gfl.build",
    "load_config": "gfl.config_file",
    "load_detector": "gfl.checkpoint",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
