"""From images to pairs of views: whole batches at once, or one image after the other."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from datamodules.batch import Batch, ViewPair
from datamodules.images import Images
from datamodules.views.batched import BatchedView
from datamodules.views.transforms import Views


class BatchedPairs:
    """Pairs of views of a whole batch, at all levels.

    Args:
        views: which views.
        side: of the images, in pixels.
        mean: mean of each channel for images in 0 … 1.
        std: standard deviation of each channel.

    Raises:
        DataError: a transform has an operation without a batched form.
    """

    def __init__(self, views: Views, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._levels = views.levels
        self._sides = [BatchedView(view, mean, std) for view in views.pair_transform(side).transforms]

    def __call__(self, images: Tensor) -> tuple[ViewPair, ...]:
        """uint8 ``(B, H, W, C)`` → one pair per level, weakest first."""
        chains = [view.draw(images) for view in self._sides]
        return tuple(
            ViewPair(s, *(view.render(images, chain, s) for view, chain in zip(self._sides, chains, strict=True)))
            for s in self._levels
        )


class PairedImages(Dataset[Batch]):
    """Pairs of views made of one image after the other, while they are loaded.

    Args:
        images: the split.
        transform: makes two views of a PIL image, float32 ``(C, H, W)`` in 0 … 1.
        mean: mean of each channel for images in 0 … 1.
        std: standard deviation of each channel.
    """

    def __init__(
        self, images: Images, transform: MultiViewTransform, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self._images, self._transform, self._mean, self._std = images, transform, mean, std

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, seeded: tuple[Tensor, int]) -> Batch:
        """The batch with these indices; what is drawn for it follows from its seed."""
        indices, seed = seeded
        with isolate_rng(include_cuda=False):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)  # lightly's blur and solarization
            random.seed(seed)
            sides = zip(*(self._transform(self._images.picture(int(index))) for index in indices), strict=True)
        scaled = (v2.functional.normalize(torch.stack(side), self._mean, self._std) for side in sides)
        pair = ViewPair(1.0, *(side.contiguous(memory_format=torch.channels_last) for side in scaled))
        return Batch(pair.a, self._images.labels[indices], (pair,))
