"""Contrastive losses by their cosines: rows of similarities, the positive first, that also can be distilled.

lightly's ``NTXentLoss`` gives the loss alone, and its memory bank takes the keys in with every call; here the cosines
of several networks are compared with the same keys, and with each other.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from lightly.models.modules.memory_bank import MemoryBankModule
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ranges import PositiveFloat, PositiveInt, Share


def info_nce(cosines: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of rows of similarities over a temperature; the positive is column 0.

    Args:
        cosines: ``(rows, 1 + negatives)``.
        temperature: T.
    """
    return F.cross_entropy(cosines / temperature, cosines.new_zeros(len(cosines), dtype=torch.long))


def distillation(cosines: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy between softmaxes of rows of similarities; no gradient goes to the teacher's.

    −mean Σ_j softmax(teacher / τ)_j log softmax(cosines / τ)_j, smallest, the teacher's entropy, where both are equal.

    Args:
        cosines: ``(rows, columns)``.
        teacher: alike.
        temperature: τ.
    """
    return F.cross_entropy(cosines / temperature, (teacher.detach() / temperature).softmax(dim=1))


def pair_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of each of 2B embeddings with all others, the other view of its image first: ``(2B, 2B − 1)``.

    Args:
        a: of one view, ``(B, D)``, of length 1.
        b: of the other, alike.
    """
    z = torch.cat([a, b])
    columns = torch.arange(len(z), device=z.device)
    order = (columns + columns.unsqueeze(1) + len(a)) % len(z)  # row i begins with its partner, (i + B) mod 2B
    order = order[order != columns.unsqueeze(1)].view(len(z), -1)
    return (z @ z.T).gather(1, order)


def key_cosines(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    """Cosines of queries with their keys, then with a queue: ``(B, 1 + Q)``.

    Args:
        queries: ``(B, D)``, of length 1.
        keys: one for each, alike.
        queue: other keys, ``(Q, D)``.
    """
    return torch.cat([(queries * keys).sum(dim=1, keepdim=True), queries @ queue.T], dim=1)


class Contrast(nn.Module):
    """What embeddings of images are compared with.

    Attributes:
        views: how many views of an image each network embeds.
        temperature: T of the loss.
        momentum: share that a key encoder keeps of its weights in a step; None: there is none.
    """

    views: ClassVar[int]
    temperature: float
    momentum: float | None = None

    def enqueue(self, keys: Tensor) -> None:
        """Keep a batch's keys for later ones; by default they are forgotten."""


class PairContrast(Contrast):
    """SimCLR (Chen et al., 2020): both views of an image, among those of the batch.

    Args:
        dim: D, width of the embeddings.
        temperature: T.
    """

    views = 2

    def __init__(self, dim: int, temperature: PositiveFloat = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    @override
    def forward(self, embeddings: Sequence[Tensor], keys: Tensor | None = None) -> Tensor:
        """:func:`pair_cosines` of the two views' embeddings."""
        return pair_cosines(*embeddings)


class QueueContrast(Contrast):
    """MoCo v2 (Chen et al., 2020): one view, with a key of the other and a queue of the keys of earlier batches.

    The queue is lightly's memory bank, but in checkpoints, and it takes keys in when it is told to.

    Args:
        dim: D, width of the embeddings.
        temperature: T.
        size: Q, keys in the queue; random ones at first.
        momentum: of the key encoder.
    """

    views = 1

    def __init__(
        self, dim: int, temperature: PositiveFloat = 0.2, size: PositiveInt = 65536, momentum: Share = 0.999
    ) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.queue = MemoryBankModule((size, dim), feature_dim_first=False)
        for name, buffer in [*self.queue.named_buffers()]:
            self.queue.register_buffer(name, buffer, persistent=True)

    @override
    def forward(self, embeddings: Sequence[Tensor], keys: Tensor) -> Tensor:
        """:func:`key_cosines` of the first view's embeddings with the second view's keys; the queue stays as it is."""
        return key_cosines(embeddings[0], keys, self.queue(keys)[1])

    @override
    def enqueue(self, keys: Tensor) -> None:
        """Take a batch's keys in, in place of the oldest; what does not fit at the end of the queue is left out."""
        self.queue(keys, update=True)


ContrastCallable = Callable[[int], Contrast]
"""Width of the embeddings → what they are compared with."""
