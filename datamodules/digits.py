"""scikit-learn's handwritten digits: comes with the installation, needs no download."""

from functools import cache

import numpy as np
import torch
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.images import Images, MemoryImages


class Digits(ImageDataModule):
    """1,797 handwritten digits of 8×8 grey pixels; a fixed, stratified fifth is the test split."""

    num_classes = 10
    image_shape = (1, 8, 8)
    mean = (0.3053,)
    std = (0.3761,)

    @override
    def load(self, train: bool) -> Images:
        """The training or test split, grey levels 0 … 16 spread over 0 … 255."""
        kept, held = _all_digits().hold_out(0.2, "digits")
        return kept if train else held


@cache
def _all_digits() -> MemoryImages:
    """Kept for all splits: they are read from a text file."""
    from sklearn.datasets import load_digits  # takes half a second to import

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None])
    return MemoryImages(images, torch.from_numpy(digits.target))
