"""Fit sides as numbers and as distributions to features, disturb these, and see how far the sides move.

The appendix of the paper (figure 10) says that the error of a number grows with the distance that it has to be.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from gfl.common.arguments import whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f"{__doc__}Writes disturbed_sides.csv and disturbed_sides.png.",
        epilog="example: python scripts/disturbed_sides.py -o analysis",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--out", required=True, help="folder for the table and the diagram")
    parser.add_argument("--seeds", type=whole_number(2, 999), default=5, help="seeds 0, 1, ... (default 5)")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce("loading libraries")

import numpy as np
import torch
from torch import Tensor, nn

from gfl.common.errors import run
from gfl.common.files import output_folder, writing
from gfl.common.progress import print_line
from gfl.evaluation.plots import COLOURS, new_figure, save_figure
from gfl.method.box_representation import BoxRepresentation, DiracBox, GeneralBox

REG_MAX, WIDTH, STEPS, TARGETS, TRIALS = 16, 64, 1000, 256, 20
NOISE = (
    0.1  # standard deviation of what disturbs the features, as a share of the root mean square of the target's features
)
EDGES = np.arange(0, REG_MAX + 1, 2)  # of the groups of targets, in strides
KINDS = {  # and the weight of its own loss beside the L1 distance
    "Dirac delta": (lambda: DiracBox(start=REG_MAX / 2), 0.0),
    "general": (lambda: GeneralBox(reg_max=REG_MAX), 0.0),
    "general with DFL": (lambda: GeneralBox(reg_max=REG_MAX), 1.0),
}


class OwnWeights(nn.Module):
    """Every target has features of its own, all alike in size, and weights of its own."""

    def __init__(self, targets: Tensor, initial: Sequence[float]) -> None:
        super().__init__()
        self.x = torch.randn(*targets.shape, WIDTH).abs()
        # Not negative: a Dirac side that starts below 0 has no gradient.
        self.weights = nn.Parameter(0.01 * torch.rand(*targets.shape, len(initial), WIDTH))

    def features(self) -> Tensor:
        """(T, 4, WIDTH)."""
        return self.x

    def sides(self, features: Tensor) -> Tensor:
        """(T, 4, WIDTH) -> (T, 4, K)."""
        return torch.einsum("tskw,tsw->tsk", self.weights, features)


class SharedWeights(nn.Module):
    """Weights that all targets share, on learned features, which must say what the target is: as in a detector."""

    def __init__(self, targets: Tensor, initial: Sequence[float]) -> None:
        super().__init__()
        self.targets = targets[..., None] / REG_MAX
        self.hidden, self.sides = nn.Sequential(nn.Linear(1, WIDTH), nn.ReLU()), nn.Linear(WIDTH, len(initial))
        self.sides.bias.data = torch.tensor(initial)

    def features(self) -> Tensor:
        """(T, 4, WIDTH)."""
        return self.hidden(self.targets)


def disturbed_error(network: type[nn.Module], box: BoxRepresentation, own_weight: float) -> np.ndarray:
    """Fit a network, then the mean absolute error of its disturbed sides in strides, per group of targets."""
    targets = torch.linspace(0, REG_MAX, TARGETS + 1)[:-1].reshape(-1, 4)
    model = network(targets, box.initial)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        output = model.sides(model.features())
        loss = (box.distances(output) - targets).abs().mean()
        if own_weight:
            loss = loss + own_weight * box.loss(output, targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        clean = model.features()
        noise = NOISE * clean.square().mean(dim=-1, keepdim=True).sqrt() * torch.randn(TRIALS, *clean.shape)
        error = torch.stack([(box.distances(model.sides(clean + each)) - targets).abs() for each in noise]).mean(dim=0)
    group = np.digitize(targets.numpy(), EDGES) - 1
    return np.array([error.numpy()[group == number].mean() for number in range(len(EDGES) - 1)])


def main(args: argparse.Namespace) -> None:
    out = output_folder(args.out)
    rows, found = [], {}
    for network in (OwnWeights, SharedWeights):
        for kind, (make, own_weight) in KINDS.items():
            per_seed = []
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                per_seed.append(disturbed_error(network, make(), own_weight))
                rows += [[network.__name__, kind, seed, *group] for group in zip(EDGES, EDGES[1:], per_seed[-1])]  # noqa: B905
            found[network.__name__, kind] = mean = np.mean(per_seed, axis=0)
            ends = f"{mean[0]:.3f} strides off where 0 to 2 are learned, {mean[-1]:.3f} from 14"
            print_line(f"{network.__name__:13} {kind:16} {ends}")
    path = out / "disturbed_sides.csv"
    with writing(path), open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["weights", "kind", "seed", "from", "to", "error"], *rows])
    plot(found, out / "disturbed_sides.png")
    print_line(f"written: {path}, {out / 'disturbed_sides.png'}")


def plot(found: dict[tuple[str, str], np.ndarray], path: Path) -> None:
    """Mean error of disturbed sides against the target, a diagram per kind of weights."""
    page, axes = new_figure(2)
    titles = {"OwnWeights": "weights per target", "SharedWeights": "weights shared by all targets"}
    for (network, kind), errors in found.items():
        place = list(titles).index(network)
        colour = COLOURS[list(KINDS).index(kind)]
        axes[place].plot((EDGES[:-1] + EDGES[1:]) / 2, errors, marker="o", color=colour, label=kind)
    for each, title in zip(axes, titles.values(), strict=True):
        each.set(title=title, xlabel="distance to learn (strides)", ylabel="mean error, disturbed (strides)")
        each.set_ylim(bottom=0)
        each.legend()
    save_figure(page, path)


if __name__ == "__main__":
    run(main, ARGS)
