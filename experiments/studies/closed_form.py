"""Closed-form fitting against gradient descent on the toy tasks: accuracies, and pictures of what is decided where.

    python -m experiments.studies.closed_form --output runs/closed_form_toys

Every network is fitted to the 400 training points of a seed and evaluated on 2,000 test points. Closed form:
``models.ClosedFormMLP``. Gradient descent: the same network and cross-entropy, batches of 32, in a plain loop, which
is what ``models.Backprop`` does; momentum-SGD 150 epochs at a fixed learning rate, Adam 400 epochs with cosine decay;
the better of two learning rates on the first seed's 100 validation points. Written: ``results.csv``,
``tables.md``, ``regions.png`` (methods), ``ridge.png`` (λ and width).
"""

import csv
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

from datamodules.toys import Checkerboard, NoisyProducts, Rings, Spirals, Toys
from experiments.probing.decision_regions import draw_regions
from experiments.run import tables
from experiments.studies.options import study_parser
from losses.classification import top1
from models.methods.closed_form import ClosedFormMLP
from models.networks.mlp import MLP
from models.parts.ridge import ForwardProjection, Platonic, RandomFeatures

TASKS = (Checkerboard, Rings, Spirals, NoisyProducts)
WIDTHS = ([50], [500], [50, 50], [500, 500])
RIDGES = (1e-6, 1e-2, 1.0)
RIDGE = 1e-2
TARGETS = {"elm": RandomFeatures, "forward projection": ForwardProjection, "platonic": Platonic}


class Recipe(NamedTuple):
    """How a network is trained by gradient descent."""

    epochs: int
    rates: tuple[float, float]
    optimizer: Callable[..., Optimizer]
    schedule: Callable[[Optimizer], LRScheduler]


RECIPES = {
    "momentum-SGD": Recipe(150, (0.03, 0.1), partial(SGD, momentum=0.9, fused=True), partial(ConstantLR, factor=1)),
    "Adam": Recipe(400, (1e-3, 1e-2), partial(Adam, fused=True), partial(CosineAnnealingLR, T_max=400)),
}


class Points(NamedTuple):
    """Images ``(N, d, 1, 1)`` and labels ``(N,)``."""

    images: Tensor
    labels: Tensor


class Result(NamedTuple):
    """What one fitted network reached; accuracies 0 … 1."""

    task: str
    widths: str
    method: str
    ridge: float
    seed: int
    train: float
    test: float
    seconds: float


def draw(task: type[Toys], seed: int) -> dict[str, Points]:
    """The splits of a task."""
    data = task(seed=seed)
    data.setup("fit")
    data.setup("test")
    splits: dict[str, Any] = {"train": data.training_images}
    splits |= {"val": data.val_dataloader().dataset, "test": data.test_dataloader().dataset}
    batches = {name: split.__getitems__(torch.arange(len(split))) for name, split in splits.items()}
    return {name: Points(data.normalised(batch.images), batch.labels) for name, batch in batches.items()}


@torch.no_grad()
def accuracy(network: nn.Module, points: Points) -> float:
    """Share of points that are told apart rightly."""
    return float(top1(network.eval()(points.images), points.labels))


def solve(train: Points, widths: Sequence[int], method: str, ridge: float, seed: int) -> nn.Module:
    """Fit in closed form."""
    torch.manual_seed(seed)
    model = ClosedFormMLP((train.images.shape[1], 1, 1), 2, widths, TARGETS[method], ridge)
    for _ in range(len(widths) + 1):
        model.accumulate(*train)
        model.solve()
    return model


def descend(train: Points, widths: Sequence[int], method: str, rate: float, seed: int) -> nn.Module:
    """Train by gradient descent."""
    torch.manual_seed(seed)
    recipe, network = RECIPES[method], MLP((train.images.shape[1], 1, 1), 2, widths, batch_norm=False)
    optimizer = recipe.optimizer(network.parameters(), lr=rate)
    schedule = recipe.schedule(optimizer)
    for _ in range(recipe.epochs):
        for chosen in torch.randperm(len(train.labels)).split(32):
            F.cross_entropy(network(train.images[chosen]), train.labels[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return network


def best_rate(splits: dict[str, Points], widths: Sequence[int], method: str) -> float:
    """The learning rate that is better on the validation points."""
    rates = RECIPES[method].rates
    return max(rates, key=lambda rate: accuracy(descend(splits["train"], widths, method, rate, seed=0), splits["val"]))


def measure(tasks: Iterable[type[Toys]], widths: Sequence[Sequence[int]], seeds: int) -> Iterable[Result]:
    """Fit every network."""
    for task, layers in itertools.product(tasks, widths):
        splits = [draw(task, seed) for seed in range(seeds)]
        fits = {(method, ridge): partial(solve, method=method, ridge=ridge) for method in TARGETS for ridge in RIDGES}
        for method in RECIPES:
            fits[method, 0.0] = partial(descend, method=method, rate=best_rate(splits[0], layers, method))
        for (method, ridge), fit in fits.items():
            for seed, points in enumerate(splits):
                start = time.perf_counter()
                network = fit(points["train"], layers, seed=seed)
                seconds = time.perf_counter() - start
                train, test = (accuracy(network, points[split]) for split in ("train", "test"))
                shape = "-".join(map(str, layers))
                yield Result(task.__name__, shape, method, ridge, seed, train, test, seconds)


def tables_of(results: Sequence[Result]) -> str:
    """Methods at λ = 1e-2, then the closed-form ones at every λ, as Markdown; train / test ± standard deviation, %."""
    ridges = {(method, ridge): f"{method}, λ = {ridge:g}" for ridge in RIDGES for method in TARGETS}
    methods = {(name, RIDGE): name for name in TARGETS} | {(name, 0.0): name for name in RECIPES}
    return f"λ = {RIDGE:g}:\n\n{_table(results, methods)}\n\n{_table(results, ridges)}\n"


def _table(results: Sequence[Result], columns: dict[tuple[str, float], str]) -> str:
    def cells(row: tuple[str, str]) -> Iterator[str]:
        yield from row
        for key in columns:
            yield _cell([r for r in results if (r.task, r.widths, r.method, r.ridge) == (*row, *key)])

    rows = dict.fromkeys((result.task, result.widths) for result in results)
    return tables.markdown(["task", "widths", *columns.values()], [[*cells(row)] for row in rows])


def _cell(results: Sequence[Result]) -> str:
    train, test = ([100 * getattr(result, split) for result in results] for split in ("train", "test"))
    spread = f" ± {statistics.stdev(test):.1f}" if len(test) > 1 else ""
    return f"{statistics.fmean(train):.1f} / {statistics.fmean(test):.1f}{spread}"


Panel = tuple[str, type[Toys], Callable[[Points], nn.Module]]
"""Title, task, and how a network is fitted to its training points."""


def draw_panels(panels: Sequence[Sequence[Panel]], path: Path) -> None:
    """A grid of decision regions with training points; titles say the test accuracy."""
    size = (2.1 * len(panels[0]), 2.3 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    for (title, task, fit), place in zip(itertools.chain(*panels), axes.flat, strict=True):
        splits = draw(task, seed=0)
        network = fit(splits["train"])
        train, test = splits["train"], accuracy(network, splits["test"])

        def classify(plane: Tensor, network: nn.Module = network) -> Tensor:
            return network(plane[:, :, None, None])

        draw_regions(place, classify, train.images.flatten(1), train.labels, size=5)
        place.set_title(f"{title}: {100 * test:.1f} %", fontsize=8)
    figure.suptitle("test top-1; drawn are the training points", fontsize=9)
    figure.savefig(path, dpi=90)


def method_panels(widths: Sequence[int]) -> list[list[Panel]]:
    """One row per task in the plane, one column per method."""
    rows: list[list[Panel]] = []
    for task in TASKS[:3]:
        solved: list[Panel] = [
            (name, task, partial(solve, widths=widths, method=name, ridge=RIDGE, seed=0)) for name in TARGETS
        ]
        rates = {name: best_rate(draw(task, seed=0), widths, name) for name in RECIPES}
        trained: list[Panel] = [
            (n, task, partial(descend, widths=widths, method=n, rate=r, seed=0)) for n, r in rates.items()
        ]
        rows.append([*solved, *trained])
    return rows


def ridge_panels(task: type[Toys], method: str) -> list[list[Panel]]:
    """One row per width, one column per λ."""

    def panel(widths: Sequence[int], ridge: float) -> Panel:
        title = f"{'-'.join(map(str, widths))} units, λ = {ridge:g}"
        return title, task, partial(solve, widths=widths, method=method, ridge=ridge, seed=0)

    return [[panel(widths, ridge) for ridge in RIDGES] for widths in ([50], [500], [500, 500])]


def main() -> None:
    """Measure, print, draw."""
    parser = study_parser(__doc__)
    names = {task.__name__: task for task in TASKS}
    parser.add_argument("--tasks", nargs="+", default=list(names), choices=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/closed_form_toys"))
    parser.add_argument("--no_pictures", action="store_true", help="tables only")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results = []
    with (options.output / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Result._fields)
        for result in measure([names[name] for name in options.tasks], WIDTHS, options.seeds):
            results.append(result)
            writer.writerow(result)
            file.flush()
    text = tables_of(results)
    (options.output / "tables.md").write_text(text)
    print(text)
    if not options.no_pictures:
        draw_panels(method_panels([500]), options.output / "regions.png")
        draw_panels(ridge_panels(Checkerboard, "forward projection"), options.output / "ridge.png")


if __name__ == "__main__":
    main()
