"""The diagram of a study."""

from collections.abc import Sequence
from pathlib import Path

from gfl.ablation.outcomes import Outcome
from gfl.common.text import printable
from gfl.evaluation.plots import COLOURS, new_figure, save_figure


def plot_study(title: str, outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a diagram of each row's difference from its baseline row, with its confidence interval, and the paper's."""
    shown = [each for each in reversed(outcomes) if each.difference is not None]
    page, (axes,) = new_figure(1, width=7.5, height=1.6 + 0.45 * max(1, len(shown)))
    for place, each in enumerate(shown):
        axes.errorbar(each.difference, place, xerr=each.margin, fmt="o", capsize=4, color=COLOURS[0], label="here")
        if each.paper_difference is not None:
            axes.plot(each.paper_difference, place - 0.22, "D", markersize=5, color=COLOURS[1], label="paper, on COCO")
    axes.axvline(0, color="#404040", linewidth=1)
    names = [f"{printable(each.row.name)}  ({each.seeds} seed{'s' * (each.seeds > 1)})" for each in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(-0.7, len(shown) + 0.3)  # above the rows, where no mark can be taken for one of them, the legend
    axes.set_xlabel("difference of AP to the baseline row, in points")
    axes.set_title(printable(title))
    handles, labels = axes.get_legend_handles_labels()
    each_once = dict(zip(labels, handles, strict=True))
    if each_once:
        axes.legend(
            each_once.values(),
            each_once.keys(),
            loc="upper center",
            ncols=2,
            frameon=True,
            framealpha=1,
            edgecolor="none",
        )
    else:
        axes.text(0.5, 0.5, "nothing to compare with the baseline row yet", transform=axes.transAxes, ha="center")
    save_figure(page, path)
