"""Local losses and what judges predictions: pure functions on tensors. They know only torch."""

from losses.classification import ensemble, ensemble_weights, probabilities, top1
from losses.diversity import diversity

__all__ = ["diversity", "ensemble", "ensemble_weights", "probabilities", "top1"]
