"""What a data module hands on."""

from typing import Any, NamedTuple

from torch import Tensor


class ViewPair(NamedTuple):
    """Two views of every image of a batch.

    Attributes:
        strength: of the random changes, 0 … 1; 1 are the ordinary ones.
        a: first views, normalised float32 ``(B, C, H, W)`` in channels-last memory.
        b: second views, alike.
    """

    strength: float
    a: Tensor
    b: Tensor


class Batch(NamedTuple):
    """Images and their labels.

    From a loader the images are uint8 ``(B, H, W, C)``, or ``(B, 2, H, W, C)`` where it makes two of each for views;
    after the transfer to the device they are augmented, normalised float32 ``(B, C, H, W)`` in channels-last memory.
    Labels are int64 ``(B,)``. In training with views there is one pair per level, weakest first, and the images are
    the last pair's first views.

    In training ``indices``, int64 ``(B,)``, are the images' places in the training split; ``weights``,
    float32 ``(B,)``, are those of their losses if an epoch has only some of the images (:class:`Selection`).
    ``arrived`` comes with a batch from which earlier blocks have learned in another process: the number of the block
    that goes on, counted from 0, and what it reads.
    """

    images: Tensor
    labels: Tensor
    views: tuple[ViewPair, ...] = ()
    indices: Tensor | None = None
    weights: Tensor | None = None
    arrived: tuple[int, Any] | None = None


class Selection(NamedTuple):
    """Some images of a training split.

    Attributes:
        indices: their places in the split, int64 ``(M,)``.
        weights: of the losses of all images of the split, float32 ``(N,)``; those of images that are left
            out are not read.
        labelled: whether their labels are shown; −1 stands in for each that is not.
        batch_size: images per batch of one process; by default that of the data.
    """

    indices: Tensor
    weights: Tensor
    labelled: bool = True
    batch_size: int | None = None
