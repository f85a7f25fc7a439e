"""Channels in equal sets of neighbours, one for each class."""

from torch import nn

from losses.errors import NetworkError


def require_class_sets(channels: int, num_classes: int) -> None:
    """Refuse channels that cannot be shared out evenly among classes.

    Raises:
        NetworkError: they cannot.
    """
    if channels % num_classes:
        raise NetworkError(
            f"{channels} channels cannot be {num_classes} equal sets, one for each class: choose a multiple of "
            f"{num_classes}, such as {max(1, round(channels / num_classes)) * num_classes}."
        )


class ClassSetNorm(nn.GroupNorm):
    """Takes off each set's mean and divides by its standard deviation, over all positions of one image.

    Args:
        channels: of all sets.
        num_classes: number of sets; 1 standardises the whole image.

    Raises:
        NetworkError: the classes do not divide the channels.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        require_class_sets(channels, num_classes)
        super().__init__(num_classes, channels, affine=False)
