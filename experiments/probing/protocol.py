"""How frozen features are judged."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.run.errors import RunError


@dataclass(frozen=True)
class Protocol:
    """The options of :meth:`experiments.trainer.Trainer.probe` that judge, and the seed of all that is drawn.

    Raises:
        RunError: no learning rate.
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

    def __post_init__(self) -> None:
        if not self.learning_rates:
            raise RunError("There is no learning rate to choose from: give --learning_rates [0.03,0.1,0.3,1].")

    @property
    def linear(self) -> str:
        """What metrics call the linear probe."""
        return f"probe_lin{self.epochs}{'_augmented' if self.augment else ''}"

    @property
    def knn(self) -> str:
        """What metrics call the vote."""
        return f"knn_k{self.k}_t{self.temperature:g}"
