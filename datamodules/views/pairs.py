"""From images to pairs of views: whole batches at once, or one image after the other."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import Dataset

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
    """

    def __init__(self, images: Images, transform: MultiViewTransform) -> None:
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, seeded: tuple[Tensor, int]) -> Batch:
        """The batch with these indices; what is drawn for it follows from its seed."""
        indices, seed = seeded
        with isolate_rng(include_cuda=False):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)  # lightly's blur and solarization
            random.seed(seed)
            a, b = zip(*(self._transform(self._images.picture(int(index))) for index in indices), strict=True)
        pair = ViewPair(1.0, torch.stack(a), torch.stack(b))
        return Batch(pair.a, self._images.labels[indices], (pair,))


def normalised(pair: ViewPair, mean: Sequence[float], std: Sequence[float]) -> ViewPair:
    """A pair with images in 0 … 1 → the same normalised, in channels-last memory."""

    def normalise(images: Tensor) -> Tensor:
        mean_, std_ = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std))
        return ((images - mean_) / std_).contiguous(memory_format=torch.channels_last)

    return ViewPair(pair.strength, normalise(pair.a), normalise(pair.b))
