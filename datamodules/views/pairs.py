"""From images to pairs of views: what is done while images are loaded, and what on the device."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batch import Batch, ViewPair
from datamodules.images import Images, Indices
from datamodules.views.batched import BatchedView, translate
from datamodules.views.transforms import Views


class DevicePairs:
    """Pairs of views of a whole batch, at all levels: what is left to do on the device.

    Args:
        views: which views.
        side: of the images, in pixels.
        mean: mean of each channel for images in 0 … 1.
        std: standard deviation of each channel.

    Raises:
        DataError: the transform is none for :meth:`Views.pair_transform`.
    """

    def __init__(self, views: Views, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._levels = views.levels
        transforms = views.pair_transform(side).transforms
        operations = [translate(transform) if views.batched else () for transform in transforms]
        self._whole = [BatchedView(all_of_them, mean, std) for all_of_them in operations]
        self._rest = [BatchedView(all_of_them[1:], mean, std) for all_of_them in operations]  # the crop comes first

    def __call__(self, images: Tensor) -> tuple[ViewPair, ...]:
        """One pair per level, weakest first.

        Args:
            images: uint8 ``(B, H, W, C)``; from :class:`PairedImages`, as far as the workers came,
                ``(B, 2, H, W, C)``.
        """
        loaded_in_pairs = images.ndim == 5
        sides = images.unbind(1) if loaded_in_pairs else (images, images)
        views = self._rest if loaded_in_pairs else self._whole
        chains = [view.draw(side) for view, side in zip(views, sides, strict=True)]
        made = list(zip(views, sides, chains, strict=True))
        return tuple(ViewPair(s, *(view.render(side, chain, s) for view, side, chain in made)) for s in self._levels)


class PairedImages(Dataset[Batch]):
    """Two pictures of each image, made while it is loaded: whole views, or what the device colours.

    They are uint8, a quarter of what travels otherwise, and in one tensor.

    Args:
        images: the split.
        transforms: make the two of a PIL image: uint8 ``(C, H, W)``, or float32 in 0 … 1, which is rounded to 256
            levels.
    """

    def __init__(self, images: Images, transforms: Sequence[Callable[[Image.Image], Any]]) -> None:
        self._images, self._transforms = images, transforms

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, indices: Indices) -> Batch:
        """Images uint8 ``(B, 2, H, W, C)``, in memory channel by channel as torchvision makes them."""
        pairs = torch.stack([self._pair(int(index)) for index in indices])
        return Batch(pairs.permute(0, 1, 3, 4, 2), self._images.labels[indices])

    def _pair(self, index: int) -> Tensor:
        picture = self._images.picture(index)
        return torch.stack([_levels(transform(picture)) for transform in self._transforms])


def _levels(view: Tensor) -> Tensor:
    """uint8 ``(C, H, W)``."""
    return view.mul(255).round_().to(torch.uint8) if view.is_floating_point() else view
