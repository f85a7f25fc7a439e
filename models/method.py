"""What the command line asks of a way to train, whether it goes through the common loop or stands beside it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import lightning.pytorch as L
from torch import Tensor

from losses import probabilities, top1
from models.networks.chain import NetworkCallable


class LabelledImages(Protocol):
    """A batch: images ``(B, C, H, W)``, labels ``(B,)``, weights of the samples' losses ``(B,)`` if they differ."""

    images: Tensor
    labels: Tensor
    weights: Tensor | None


class Method(L.LightningModule):
    """A way to train a network of blocks on images.

    :class:`~models.local_learning.LocalLearning` is the loop of all methods with backward passes; one that does
    not fit it (closed-form fitting) is a method of its own beside it.

    Attributes:
        make_network: what makes the network, uncut.
        network_name: what tables call it.
        image_shape: ``(C, H, W)``.
        num_classes: number of classes.
        latest: figures of the last logged training step, under their logged names.
        predicts_classes: whether calling the module gives logits ``(B, classes)``, and validation and test log
            their accuracy.
        epochs_per_block: of blocks that learn one after the other; None if they learn together.
    """

    make_network: NetworkCallable
    network_name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    predicts_classes: ClassVar[bool] = False
    epochs_per_block: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, float] = {}

    @property
    def num_blocks(self) -> int:
        """K."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many blocks it has.")

    @property
    def num_groups(self) -> int:
        """G, neuron groups per block; 1 unless a method says otherwise."""
        return 1

    @property
    def fixed_epochs(self) -> int | None:
        """Number of epochs that a training takes, no more and no fewer; None if any number does."""
        return None

    @property
    def block_names(self) -> list[str]:
        """What metrics call the blocks, in order: ``block1`` … ``blockK``."""
        return [f"block{k}" for k in range(1, self.num_blocks + 1)]

    @property
    def why_one_process(self) -> str | None:
        """Why DDP must not share the images of a batch out among processes; None if it may."""
        return "is not built for several processes"

    @property
    def monitor(self) -> str | None:
        """Logged figure whose best value ``best.ckpt`` keeps, larger is better; None for no such file."""
        return None

    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """What probes read: ``block<k>/gap`` → features of block k, averaged over positions, ``(B, C_k)``.

        Args:
            images: ``(B, C, H, W)``.
            last: number of the last block to compute, from 1; by default all K.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its blocks' features are.")

    def block_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Name of each block that predicts → its logits ``(B, classes)``, in order; the last are the model's."""
        raise NotImplementedError(f"{type(self).__name__} predicts no classes.")

    def take_shape_of(self, weights: Mapping[str, Tensor]) -> None:
        """Become the model that these weights were saved from, for methods that drop parts while they train."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the image size, which convolutions do not know."""
        checkpoint["image_shape"] = self.image_shape


class Classifier:
    """What a method that predicts classes logs of its predictions: mix it in before the method.

    It gives ``block_logits`` and, if more than accuracies are to be logged, :meth:`figures`.
    """

    predicts_classes: ClassVar[bool] = True

    @property
    def monitor(self) -> str:
        """The model's prediction on the validation images."""
        return "val/top1"

    def validation_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """Log ``val/…``."""
        self._evaluate("val", batch)

    def test_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """Log ``test/…``."""
        self._evaluate("test", batch)

    def predict_step(self, batch: LabelledImages, batch_idx: int) -> Tensor:
        """Softmax ``(B, classes)`` of the prediction: probabilities, if cross-entropy was trained on; else scores."""
        return self(batch.images).softmax(dim=1)

    def _evaluate(self, split: str, batch: LabelledImages) -> None:
        figures = self.figures(self.block_logits(batch.images), batch.labels)
        self.log_dict({f"{split}/{name}": value for name, value in figures.items()}, batch_size=len(batch.labels))

    def figures(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """What is logged of the predictions of the blocks; ``top1`` is the last one's, which is the model's."""
        figures = {f"{name}/top1": top1(probabilities(z), labels) for name, z in logits.items()}
        return figures | {"top1": figures[f"{list(logits)[-1]}/top1"]}
