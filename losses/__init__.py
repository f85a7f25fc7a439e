"""Local losses and what judges predictions: pure functions on tensors. They know only torch.

Barlow Twins, NT-Xent and VICReg come from lightly: ``lightly.loss``.
"""

from losses.classification import ensemble, ensemble_weights, probabilities, redundant_shares, top1
from losses.contrastive import SubsampledNTXent
from losses.diversity import diversity
from losses.embeddings import (
    correlation_parts,
    effective_rank,
    largest_deviation,
    linear_cka,
    nearest_mean_top1,
    pretext_top1,
    separation_fuzziness,
)
from losses.errors import UsageError
from losses.outputs import (
    CrossEntropy,
    ErrExp,
    ErrPow3,
    ExpGB,
    LinearOutput,
    OutputLoss,
    OutputLossCallable,
    Pow3GB,
    SigmoidMSE,
    SoftmaxMSE,
    UnnormalizedExponential,
)
from losses.similarity import channel_deviation, similarity_loss, similarity_matrix
