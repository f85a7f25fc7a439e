"""A trained network in a script: ``network = load("runs/NAME")``."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from typing_extensions import override

import models
from datamodules.augment import normalise
from experiments.run.checkpoint import load_checkpoint
from experiments.run.errors import RunError
from experiments.run.files import LAST
from losses.errors import UsageError
from models.method import Method


class TrainedNetwork(nn.Module):
    """A model with what its data module did to images: it takes them as they are.

    Args:
        model: the method, which holds ``blocks`` and ``heads``.
        mean: of each channel, for images in 0 … 1.
        std: standard deviation of each channel.
        classes: their names, in the order of the logits; none in checkpoints of earlier versions.
    """

    def __init__(self, model: Method, mean: Sequence[float], std: Sequence[float], classes: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, self.mean, self.std, self.classes = model, mean, std, classes

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, H, W, C)``; gradients go through all blocks.

        Args:
            images: levels (uint8), or float in 0 … 1.

        Raises:
            UsageError: they are no such images, or the network was trained without labels.
        """
        if not self.model.predicts_classes:
            raise UsageError(f"{type(self.model).__name__} predicts no classes: ask for its features(images).")
        return self.model(self.normalised(images))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """``block<k>/gap`` → features of block k, averaged over positions, ``(B, C_k)``; of the same images."""
        return self.model.block_features(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """What blocks read: float32 ``(B, C, H, W)``, of the same images.

        Raises:
            UsageError: they are none, or of another size than those of the training.
        """
        channels, height, width = self.model.image_shape
        if not isinstance(images, Tensor) or images.shape[1:] != (height, width, channels):
            given = f"{type(images).__name__} {tuple(getattr(images, 'shape', ()))}"
            raise UsageError(f"The network takes a tensor of images (B, {height}, {width}, {channels}), not {given}.")
        return normalise(images, self.mean, self.std)


def load(run: str | Path) -> TrainedNetwork:
    """The network of a run, in evaluation mode, on the CPU. No data is needed.

    Args:
        run: its folder, which stands for its last checkpoint, or a checkpoint file. A method of your own is to be
            imported before.

    Raises:
        RunError: the checkpoint is missing, damaged, or was written by a version that did not note all that it takes.
        UsageError: its method is not imported.
    """
    path = Path(run)
    if not path.exists():
        raise RunError(f"There is no run {path}.")
    file = path / LAST if path.is_dir() else path
    checkpoint = load_checkpoint(file)
    if missing := {Method.CHECKPOINT_HYPER_PARAMS_KEY, "image_mean", "image_std"} - checkpoint.keys():
        raise RunError(
            f"{file} was written by an earlier version, without {', '.join(sorted(missing))}: train it anew."
        )
    dir(models)  # imports all methods that come along
    model = Method.load_from_checkpoint(file, map_location="cpu")
    normalisation = checkpoint["image_mean"], checkpoint["image_std"]
    return TrainedNetwork(model, *normalisation, checkpoint.get("classes", ())).eval()
