"""What a confident mistake sends back under every output loss: ‖δ‖ against the margin, drawn and printed.

    python -m experiments.studies.output_signal --output docs/benchmarks/output_signal.png

Two classes, logits (M/2, −M/2), the second one true: the larger M, the surer the mistake. Lines are the formulas of
``losses/outputs.py``, points are autograd in float64.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from experiments.run import tables
from experiments.studies.options import study_parser
from losses.outputs import (
    CrossEntropy,
    ErrExp,
    ErrPow3,
    ExpGB,
    LinearOutput,
    OutputLoss,
    Pow3GB,
    SigmoidMSE,
    SoftmaxMSE,
    UnnormalizedExponential,
)

Formula = Callable[[Tensor, Tensor], Tensor]
"""δ ``(B, C)`` of logits and one-hot targets."""


def _softmax_mse(z: Tensor, t: Tensor) -> Tensor:
    p = z.softmax(dim=1)
    g = p - t
    return p * (g - (p * g).sum(dim=1, keepdim=True))


def _exp(z: Tensor) -> Tensor:
    return z.clamp(max=8).exp()


FORMULAS: Mapping[OutputLoss, Formula] = {
    SoftmaxMSE(): _softmax_mse,
    SigmoidMSE(): lambda z, t: (z.sigmoid() - t) * z.sigmoid() * (1 - z.sigmoid()),
    CrossEntropy(): lambda z, t: z.softmax(dim=1) - t,
    Pow3GB(): lambda z, t: 0.001 * z**3 - t,
    LinearOutput(): lambda z, t: z - t,
    ExpGB(): lambda z, t: 0.1 * _exp(z) - t,
    ErrPow3(): lambda z, t: (z - t) ** 3,
    UnnormalizedExponential(): lambda z, t: _exp(z) - t,
    ErrExp(): lambda z, t: (z - t).sign() * (_exp((z - t).abs()) - 1),
}
"""Output losses, the weakest signal of a sure mistake first → their δ."""


def mistakes(margins: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``(B, 2)`` of mistakes with these margins ``(B,)``, and their labels."""
    return torch.stack([margins / 2, -margins / 2], dim=1), torch.ones(len(margins), dtype=torch.long)


def measured(output: OutputLoss, margins: Tensor) -> Tensor:
    """‖δ‖ ``(B,)`` by autograd."""
    return output.delta(*mistakes(margins)).norm(dim=1)


def by_formula(output: OutputLoss, margins: Tensor) -> Tensor:
    """‖δ‖ ``(B,)`` by the formula."""
    logits, _ = mistakes(margins)
    return FORMULAS[output](logits, torch.tensor([0.0, 1.0]).to(logits)).norm(dim=1)


def draw(path: Path) -> None:
    """Draw all outputs into a PNG file."""
    line, points = (torch.linspace(0, 20, count, dtype=torch.float64) for count in (401, 11))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, output in enumerate(FORMULAS):
        style: dict[str, Any] = {"color": colormaps["tab10"](number), "linestyle": "--" if number < 2 else "-"}
        axes.plot(line, by_formula(output, line), label=type(output).__name__, **style)
        axes.plot(points, measured(output, points), "o", color=style["color"], markersize=4)
    axes.set_yscale("log")
    axes.set_ylim(1e-9, 1e4)
    axes.set(xlabel="margin M by which the wrong class leads", ylabel="‖δ‖, gradient with respect to the logits")
    axes.set_title(
        "Two classes, logits (M/2, −M/2), the second one true\nlines: formula; points: autograd", fontsize=10
    )
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], frameon=False, loc="outside right center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(args: Sequence[str] | None = None) -> None:
    """Print the norms and draw them."""
    parser = study_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("output_signal.png"), help="the PNG file")
    path = parser.parse_args(args).output
    margins = torch.tensor([0, 2, 5, 10, 20], dtype=torch.float64)
    rows = [[type(output).__name__, *(f"{norm:.2g}" for norm in measured(output, margins))] for output in FORMULAS]
    tables.show(["‖δ‖ at M =", *(f"{margin:g}" for margin in margins)], rows, words=["‖δ‖ at M ="])
    draw(path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
