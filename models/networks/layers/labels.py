"""A label as part of what a network reads: Forward-Forward's way to tell it what an image is said to be."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from losses.errors import NetworkError
from ranges import PositiveFloat


class LabelledInput(nn.Module):
    """Base: images and what is said of their classes → what a network reads.

    Args:
        shape: of what it reads, ``(C, H, W)``.
        num_classes: number of classes.
        strength: value of a label's pixel.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, strength: float) -> None:
        super().__init__()
        self.shape, self.num_classes, self.strength = shape, num_classes, strength

    def coded(self, labels: Tensor) -> Tensor:
        """Labels ``(B,)`` as one pixel per class, ``(B, classes)``: one of them on."""
        return self.strength * F.one_hot(labels, self.num_classes).float()

    @override
    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images with labels ``(B,)``, or, if none are given, neutral: all classes' pixels share the strength."""
        neutral = images.new_full((images.shape[0], self.num_classes), self.strength / self.num_classes)
        return self.join(images, neutral if labels is None else self.coded(labels))

    def join(self, images: Tensor, pixels: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` with the classes' pixels ``(B, classes)``."""
        raise NotImplementedError


class OverlaidLabel(LabelledInput):
    """The first pixels of the first row are the label, as published; what was there is gone.

    Args:
        image_shape: ``(C, H, W)``: grey, with a black border, as wide as there are classes.
        num_classes: number of classes.
        strength: value of the label's pixel, 1 as published, where pixels are 0 … 1.

    Raises:
        NetworkError: the images have colours, or are too narrow.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, strength: PositiveFloat = 1.0) -> None:
        channels, _, width = image_shape
        if channels > 1 or width < num_classes:
            raise NetworkError(
                f"A label of {num_classes} classes overlays as many pixels of the black border of grey images, which "
                f"images of {channels} channel{'s' if channels > 1 else ''} and {width} pixels in a row do not have: "
                "set --model.label AppendedLabel."
            )
        super().__init__(image_shape, num_classes, strength)

    @override
    def join(self, images: Tensor, pixels: Tensor) -> Tensor:
        images = images.clone()
        images[:, 0, 0, : self.num_classes] = pixels
        return images


class AppendedLabel(LabelledInput):
    """The label stands behind all pixels, in one row with them: for fully connected networks, and any images.

    Args:
        image_shape: ``(C, H, W)``.
        num_classes: number of classes.
        strength: value of the label's pixel.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, strength: PositiveFloat = 1.0) -> None:
        super().__init__((1, 1, math.prod(image_shape) + num_classes), num_classes, strength)

    @override
    def join(self, images: Tensor, pixels: Tensor) -> Tensor:
        return torch.cat([images.flatten(1), pixels], 1)[:, None, None]


LabelCallable = Callable[[tuple[int, int, int], int], LabelledInput]
"""(image shape, number of classes) → what joins images and labels."""
