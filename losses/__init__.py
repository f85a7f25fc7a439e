"""Local losses and what judges predictions: pure functions on tensors. They know only torch.

Barlow Twins, NT-Xent and VICReg come from lightly: ``lightly.loss``.
"""

from losses.classification import ensemble, ensemble_weights, probabilities, top1
from losses.contrastive import SubsampledNTXent
from losses.diversity import diversity
from losses.embeddings import correlation_parts, effective_rank, largest_deviation, pretext_top1

__all__ = [
    "SubsampledNTXent",
    "correlation_parts",
    "diversity",
    "effective_rank",
    "ensemble",
    "ensemble_weights",
    "largest_deviation",
    "pretext_top1",
    "probabilities",
    "top1",
]
