"""What a confident mistake sends back under every output loss: ‖δ‖ against the margin, drawn and printed.

    python -m experiments.studies.output_signal --output docs/benchmarks/output_signal.png

Two classes, logits (M/2, −M/2), the second one true: the larger M, the surer the mistake. By autograd in float64.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from experiments.run import tables
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

SQUASHED = (SoftmaxMSE, SigmoidMSE)
OUTPUTS = (*SQUASHED, CrossEntropy, Pow3GB, LinearOutput, ExpGB, ErrPow3, UnnormalizedExponential, ErrExp)
"""The weakest signal of a sure mistake first."""


def signal(output: OutputLoss, margins: Tensor) -> Tensor:
    """‖δ‖ ``(B,)`` of mistakes with these margins ``(B,)``."""
    logits = torch.stack([margins / 2, -margins / 2], dim=1)
    return output.delta(logits, torch.ones(len(margins), dtype=torch.long)).norm(dim=1)


def draw(path: Path) -> None:
    """Draw all outputs into a PNG file."""
    margins = torch.linspace(0, 20, 401, dtype=torch.float64)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, output in enumerate(OUTPUTS):
        style = "--" if output in SQUASHED else "-"
        colour = colormaps["tab10"](number)
        axes.plot(margins, signal(output(), margins), style, color=colour, label=output.__name__)
    axes.set(xlabel="margin M by which the wrong class leads", ylabel="‖δ‖, gradient with respect to the logits")
    axes.set(yscale="log", ylim=(1e-9, 1e4))
    axes.set_title("Two classes, logits (M/2, −M/2), the second one true", fontsize=10)
    figure.legend(reverse=True, frameon=False, loc="outside right center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(args: Sequence[str] | None = None) -> None:
    """Print the norms and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output_signal.png"), help="the PNG file")
    path = parser.parse_args(args).output
    margins = torch.tensor([0, 2, 5, 10, 20], dtype=torch.float64)
    rows = [[output.__name__, *(f"{norm:.2g}" for norm in signal(output(), margins))] for output in OUTPUTS]
    tables.show(["‖δ‖ at M =", *(f"{margin:g}" for margin in margins)], rows, words=["‖δ‖ at M ="])
    draw(path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
