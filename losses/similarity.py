"""Similarity matching: images of a class are to have alike features, images of different classes unlike ones.

A. Nøkland, L. H. Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, section 2.2.
"""

from torch import Tensor
from torch.nn import functional as F

_FEWEST_CHANNELS = 4


def channel_deviation(maps: Tensor) -> Tensor:
    """Standard deviation of each channel over the positions: ``(B, C, H, W)`` → ``(B, C)``.

    Maps of one position or of fewer than four channels are flattened instead, as in the published code.
    """
    positions = maps.flatten(2)
    if maps.shape[1] < _FEWEST_CHANNELS or positions.shape[2] == 1:
        return positions.flatten(1)
    return positions.std(dim=2, correction=0)  # Bessel's correction is a common factor: a cosine does not see it


def similarity_matrix(x: Tensor) -> Tensor:
    """Cosines between the rows of a batch, each centred first: ``(B, B)``, entries in −1 … 1.

    A row whose entries are all the same has similarity 0 with every row and receives no gradient.

    Args:
        x: vectors ``(B, D)``, or maps ``(B, C, H, W)``, of which the :func:`channel_deviation` is taken.
    """
    x = channel_deviation(x) if x.dim() == 4 else x
    rows = F.normalize(x - x.mean(dim=1, keepdim=True), dim=1, eps=1e-8)
    return rows @ rows.T


def similarity_loss(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean squared difference between the similarities of features and those of one-hot labels.

    The latter are 1 within a class and −1 / (classes − 1) between classes. A batch of one image has no pair to
    compare: its loss is 0.

    Args:
        features: ``(B, D)`` or ``(B, C, H, W)``.
        labels: ``(B,)``.
        num_classes: number of classes.

    Returns:
        A scalar.
    """
    targets = F.one_hot(labels, num_classes).to(features.dtype)
    return F.mse_loss(similarity_matrix(features), similarity_matrix(targets))
