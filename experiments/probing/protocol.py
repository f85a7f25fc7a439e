"""How frozen features are judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch.optim import SGD, Adam, Optimizer

from experiments.run.errors import RunError

_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"SGD": partial(SGD, momentum=0.9), "Adam": Adam}


@dataclass(frozen=True)
class Protocol:
    """The options of :meth:`experiments.trainer.Trainer.probe` that judge, and the seed of all that is drawn.

    Raises:
        RunError: no learning rate, no labels, or few of them and augmentation.
    """

    epochs: int = 100
    learning_rates: Sequence[float] = (0.03, 0.1, 0.3, 1.0)
    batch_size: int = 256
    k: int = 200
    temperature: float = 0.1
    seed: int = 0
    weight_decay: float = 0.0
    optimizer: Literal["SGD", "Adam"] = "SGD"
    dropout: float = 0.0
    sigmoid: bool = False
    augment: bool = False
    best_on_test: bool = False
    corrupted_images: int = 0
    label_shares: Sequence[float] = (1.0,)
    association: bool = False
    standardise: bool = False
    shared: bool = True
    distilled: bool = False

    def __post_init__(self) -> None:
        if not self.learning_rates:
            raise RunError("There is no learning rate to choose from: give --learning_rates [0.03,0.1,0.3,1].")
        if not self.label_shares or min(self.label_shares) <= 0:
            raise RunError("Shares of labels are above 0, up to 1: give for example --label_shares [0.01,1].")
        if self.augment and [*self.label_shares] != [1]:
            raise RunError("Linear classifiers on augmented images learn from all labels: leave --label_shares out.")
        if self.dropout >= 1:
            raise RunError("dropout 1 leaves a linear classifier nothing to learn from: choose a share below 1.")

    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer of the linear classifiers, whose learning rates their groups tell."""
        return _OPTIMIZERS[self.optimizer](groups, weight_decay=self.weight_decay)

    @property
    def linear(self) -> str:
        """What metrics call the linear probe."""
        others = {
            "adam": self.optimizer == "Adam",
            f"dropout{self.dropout:g}": self.dropout,
            "sigmoid": self.sigmoid,
            "augmented": self.augment,
            "standardised": self.standardise,
        }
        return "_".join([f"probe_lin{self.epochs}", *(name for name, differs in others.items() if differs)])

    def linear_of_widths(self, judge: str) -> str:
        """What metrics call another linear probe of all widths."""
        return self.linear.replace("lin", judge, 1)

    def labels(self, share: float) -> str:
        """What metrics add for a share of the labels."""
        return "" if share == 1 else f"_labels{share:g}"

    @property
    def knn(self) -> str:
        """What metrics call the vote."""
        return f"knn_k{self.k}_t{self.temperature:g}"
