"""Diagrams of measured values, drawn with matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gfl.common.files import writing
from gfl.evaluation.draw import PALETTE
from gfl.evaluation.predictions import Predictions

COLOURS = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in ((0, 114, 178), (213, 94, 0), *PALETTE[2:])]  # Okabe and Ito (2008)
matplotlib.rcParams.update(
    {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "legend.frameon": False,
        "figure.dpi": 130,
        "text.parse_math": False,  # a $ in a name is a $
    }
)


def new_figure(columns: int, rows: int = 1, *, width: float = 4.6, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row; without a window."""
    page = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return page, [page.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]


def save_figure(page: Figure, path: Path) -> None:
    """Write a PNG; raises `UserError` where that is impossible."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        page.savefig(path)


def plot_scores(named: Sequence[tuple[str, Predictions, dict[str, Any]]], path: Path) -> None:
    """Score against true IoU of every detection, one panel per checkpoint (after figure 2b of the paper)."""
    page, panels = new_figure(len(named), width=4.4, height=4.4)
    for axes, (name, found, statistics) in zip(panels, named, strict=True):
        axes.plot(found.iou, found.scores, ".", markersize=3, alpha=0.25, color=COLOURS[0], markeredgewidth=0)
        axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.02), xlabel="IoU with the object of its class", ylabel="score")
        overall, on_objects = _number(statistics["spearman"]), _number(statistics["spearman_on_objects"])
        axes.set_title(f"{name}\nSpearman {overall}, at IoU ≥ 0.5 {on_objects}")
    save_figure(page, path)


def plot_targets(name: str, distances: np.ndarray, statistics: dict[str, Any], path: Path) -> None:
    """Distances of the sides of the split's boxes from the points that learn them (figure 5c of the paper)."""
    page, (axes,) = new_figure(1, width=6.4, height=3.8)
    limit = statistics["reg_max"] * statistics["delta"]
    edges = np.linspace(0, max(limit, distances.max()) * 1.05, 60)
    axes.hist(distances.clip(min=0).ravel(), bins=edges, color=COLOURS[0])
    axes.axvline(limit, color=COLOURS[1], label=f"reg_max {statistics['reg_max']} · delta {statistics['delta']:g}")
    wanted = statistics["recommended_reg_max"]
    label = f"reg_max {wanted}: 99.9 % of the sides within"
    axes.axvline(wanted * statistics["delta"], color=COLOURS[2], linestyle="--", label=label)
    axes.set(xlabel="distance of a side from its point, in strides", ylabel="sides")
    axes.set_title(f"{name}: {statistics['share_beyond']:.2%} of the sides beyond reg_max")
    axes.legend()
    save_figure(page, path)


def plot_spread(name: str, found: Predictions, statistics: dict[str, Any], path: Path) -> None:
    """Predicted spread of sides against the true blur of their edges, and the calibration over all and per level."""
    page, (cloud, over_all, by_level) = new_figure(3, width=4.6, height=4.2)
    low, high = 0.3, max(10.0, float(found.spreads.max()))
    known = np.isfinite(found.true_sigmas)
    dots = {"markersize": 3, "alpha": 0.3, "markeredgewidth": 0, "color": COLOURS[0]}
    cloud.loglog(found.spreads[known].clip(min=low), found.true_sigmas[known], ".", **dots)
    cloud.loglog([low, high], [low, high], color="#808080", linewidth=1)
    cloud.set(xlabel="predicted spread of the side, px", ylabel="true blur of the edge, px")
    cloud.set_title(f"{name}: {statistics['sides']} sides, Spearman {_number(statistics['spearman'])}")
    _plot_curve(over_all, statistics["curve"], "error", "root mean square error", COLOURS[1])
    _plot_curve(over_all, statistics["curve"], "blur", "median true blur", COLOURS[0])
    over_all.set_title("calibration by deciles of all sides")
    for (stride, part), colour in zip(statistics["by_stride"].items(), COLOURS, strict=False):
        enough = part["sides"] >= 10 * len(part["curve"])  # else a decile is noise
        label = f"stride {stride}: {part['sides']} sides, Spearman {_number(part['spearman'])}"
        _plot_curve(by_level, part["curve"] if enough else [], "blur", label + ", too few" * (not enough), colour)
    by_level.set_title("median true blur by deciles of each level")
    for axes in (over_all, by_level):
        end = max(group["predicted"] for group in statistics["curve"])
        axes.plot([0, end], [0, end], color="#808080", linewidth=1, label="equal")
        axes.set(xlabel="predicted spread, mean of a decile, px", ylabel="px")
        axes.legend(fontsize=8)
    save_figure(page, path)


def _plot_curve(axes: Axes, curve: Sequence[dict[str, float]], key: str, label: str, colour: str) -> None:
    predicted, values = ([group[name] for group in curve] for name in ("predicted", key))
    axes.plot(predicted, values, "o-", label=label, color=colour, markersize=4)


def plot_shapes(named: Sequence[tuple[str, dict[str, float]]], path: Path) -> None:
    """Shares of sharp, flat and two-peaked sides per checkpoint."""
    page, (axes,) = new_figure(1, width=6.4, height=1.4 + 0.5 * len(named))
    left = np.zeros(len(named))
    for number, kind in enumerate(named[0][1]):
        shares = np.array([shares[kind] for _, shares in named])
        axes.barh(range(len(named)), shares, left=left, label=kind, color=COLOURS[number])
        left += shares
    axes.set_yticks(range(len(named)), [name for name, _ in named])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the sides of confident detections")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(page, path)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
