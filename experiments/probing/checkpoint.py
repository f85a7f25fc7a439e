"""The checkpoint of a run that is looked at: found, read, and seen to fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from experiments.run.checkpoint import find_checkpoint, load_checkpoint, require_same_images, require_same_network
from models.method import Method


@dataclass(frozen=True)
class Checkpoint:
    """What a run has saved.

    Attributes:
        file: where.
        epoch: after which epoch, from 1.
        step: after which training step.
        weights: parameters and buffers by name.
    """

    file: Path
    epoch: int
    step: int
    weights: Mapping[str, Tensor]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.file.absolute().parents[1]


def read_checkpoint(path: Path, image_shape: Sequence[int], *words: str) -> Checkpoint:
    """The checkpoint that is meant by a run folder (its last one) or by a file in one.

    Args:
        path: the folder or the file.
        image_shape: ``(C, H, W)`` that it must have been trained on.
        words: what a message calls it, and beside what.

    Raises:
        RunError: it is missing, damaged, or of images of another size.
    """
    file = find_checkpoint(path)
    saved = load_checkpoint(file)
    require_same_images(path if words else file, saved, image_shape, *words)
    return Checkpoint(file, saved["epoch"] + 1, saved["global_step"], saved["state_dict"])


def checkpoint_of(model: Method, path: Path) -> Checkpoint:
    """The same, of this model; parts that training dropped are dropped from the model.

    Raises:
        RunError: as above, or it is of another network or another cut.
    """
    checkpoint = read_checkpoint(path, model.image_shape)
    require_same_network(checkpoint.file, checkpoint.weights, model)
    return checkpoint
