"""How frozen features are judged."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.run.errors import RunError


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
    augment: bool = False
    best_on_test: bool = False
    corrupted_images: int = 0
    label_shares: Sequence[float] = (1.0,)
    association: bool = False

    def __post_init__(self) -> None:
        if not self.learning_rates:
            raise RunError("There is no learning rate to choose from: give --learning_rates [0.03,0.1,0.3,1].")
        if not self.label_shares or min(self.label_shares) <= 0:
            raise RunError("Shares of labels are above 0, up to 1: give for example --label_shares [0.01,1].")
        if self.augment and [*self.label_shares] != [1]:
            raise RunError("Linear classifiers on augmented images learn from all labels: leave --label_shares out.")

    @property
    def linear(self) -> str:
        """What metrics call the linear probe."""
        return f"probe_lin{self.epochs}{'_augmented' if self.augment else ''}"

    def labels(self, share: float) -> str:
        """What metrics add for a share of the labels."""
        return "" if share == 1 else f"_labels{share:g}"

    @property
    def knn(self) -> str:
        """What metrics call the vote."""
        return f"knn_k{self.k}_t{self.temperature:g}"
