"""Images held out of a split."""

import numpy as np
import torch
from torch import Tensor

from datamodules.files import DataError


def hold_out(labels: Tensor, share: float, of_what: str) -> tuple[Tensor, Tensor]:
    """Indices, int64 in rising order, of what is kept and what is held out: stratified by class, always the same.

    Args:
        labels: of all images, ``(N,)``.
        share: of the images that is held out, between 0 and 1.
        of_what: what is split, for the message.

    Raises:
        DataError: a class would have no image on one of the sides.
    """
    from sklearn.model_selection import train_test_split  # takes half a second to import

    everything = np.arange(len(labels))
    try:
        kept, held = train_test_split(everything, test_size=share, random_state=0, stratify=labels.numpy())
    except ValueError as fault:
        raise DataError(f"Cannot hold {share:g} of the {len(labels)} {of_what} out for validation: {fault}") from fault
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held))
