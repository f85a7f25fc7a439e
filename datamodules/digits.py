"""scikit-learn's handwritten digits: comes with the installation, needs no download."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from datamodules.base import ImageDataModule
from datamodules.images import MemoryImages


class Digits(ImageDataModule):
    """1,797 handwritten digits of 8×8 grey pixels; a fixed, stratified fifth is the test split."""

    num_classes = 10
    image_shape = (1, 8, 8)
    mean = (0.3053,)
    std = (0.3761,)

    def load(self, train: bool) -> MemoryImages:
        """The training or test split, grey levels 0 … 16 spread over 0 … 255."""
        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        parts = train_test_split(np.arange(len(images)), test_size=0.2, random_state=0, stratify=digits.target)
        chosen = np.sort(parts[0 if train else 1])
        return MemoryImages(torch.from_numpy(images[chosen]), torch.from_numpy(digits.target[chosen]))
