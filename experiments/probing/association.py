"""Direct association: which class each output stands for, by what it answers to labelled images.

D. Liu, J. Laydevant, A. Pontlevy, D. Querlioz, J. Grollier, "Unsupervised End-to-End Training with a Self-Defined
Target", Neuromorphic Computing and Engineering 4 (4), 2024. Nothing is trained.
"""

import torch
from torch import Tensor

from experiments.probing.features import Features
from experiments.run.errors import RunError


class Association:
    """Each output stands for the class whose images it answers with the largest mean; without any answer for none.

    Args:
        outputs: of labelled images, ``(B, N)``.
        labels: int64 ``(B,)``.
        num_classes: C.

    Attributes:
        classes: of the outputs, ``(N,)``; −1 of one that answers nothing.

    Raises:
        RunError: a class has no labelled image.
    """

    def __init__(self, outputs: Tensor, labels: Tensor, num_classes: int) -> None:
        counts = labels.bincount(minlength=num_classes)
        if not counts.all():
            missing = int(counts.eq(0).nonzero()[0])
            raise RunError(f"No labelled image is of class {missing}: give a larger share of labels.")
        sums = outputs.new_zeros(num_classes, outputs.shape[1]).index_add_(0, labels, outputs)
        largest, self.classes = (sums / counts[:, None]).max(0)
        self.classes[largest <= 0] = -1
        self._members = torch.stack([self.classes == c for c in range(num_classes)], dim=1).to(outputs)  # (N, C)

    def by_mean(self, outputs: Tensor) -> Tensor:
        """Classes ``(B,)`` whose outputs answer most, on average; a class without outputs scores −1."""
        sizes = self._members.sum(0)
        scores = outputs @ self._members / sizes.clamp(min=1)
        return scores.masked_fill(sizes == 0, -1.0).argmax(1)

    def by_largest(self, outputs: Tensor) -> Tensor:
        """Class ``(B,)`` of the output that answers most."""
        return self.classes[outputs.masked_fill(self.classes < 0, -torch.inf).argmax(1)]


def associate(known: Features, test: Features, num_classes: int) -> dict[str, float]:
    """``<kind>/top1``, by means, and ``<kind>/top1_by_largest`` → share of the test images that are recognised."""
    found = {}
    for kind, outputs in known.kinds.items():
        rule, asked = Association(outputs, known.labels, num_classes), test.kinds[kind]
        for name, classes in {"top1": rule.by_mean(asked), "top1_by_largest": rule.by_largest(asked)}.items():
            found[f"{kind}/{name}"] = classes.eq(test.labels).float().mean().item()
    return found
