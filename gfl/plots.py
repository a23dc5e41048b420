"""Plots of measured figures, drawn with matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gfl.draw import PALETTE
from gfl.errors import UserError
from gfl.study import Outcome

COLOURS = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in ((0, 114, 178), (213, 94, 0), *PALETTE[2:])]  # Okabe and Ito (2008)
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 130,
}


def figure(columns: int, rows: int = 1, *, width: float = 4.6, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row; without a window."""
    with matplotlib.rc_context(STYLE):
        page = Figure(figsize=(width * columns, height * rows), layout="constrained")
        return page, [page.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]


def save(page: Figure, path: Path) -> None:
    """Write a PNG; raises `UserError` where that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        page.savefig(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def plot_study(title: str, outcomes: Sequence[Outcome], path: Path) -> None:
    """Difference of every row to its baseline row, ours with its confidence interval, and the paper's."""
    shown = [row for row in reversed(outcomes) if row.difference is not None]
    page, (axes,) = figure(1, width=7.5, height=1.6 + 0.45 * max(1, len(shown)))
    for place, row in enumerate(shown):
        axes.errorbar(row.difference, place, xerr=row.margin, fmt="o", capsize=4, color=COLOURS[0], label="here")
        if row.paper_difference is not None:
            axes.plot(row.paper_difference, place - 0.22, "D", markersize=5, color=COLOURS[1], label="paper, on COCO")
    axes.axvline(0, color="#404040", linewidth=1)
    axes.set_yticks(range(len(shown)), [f"{row.name}  ({row.seeds} seeds)" for row in shown])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("difference of AP to the baseline row, in points")
    axes.set_title(title)
    handles = dict(reversed(list(zip(*axes.get_legend_handles_labels()[::-1], strict=True))))
    if handles:
        axes.legend(handles.values(), handles.keys(), loc="best")
    save(page, path)
