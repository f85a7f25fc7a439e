"""Local losses and what judges predictions: pure functions on tensors. They know only torch."""

from losses.classification import ensemble, ensemble_weights, top1

__all__ = ["ensemble", "ensemble_weights", "top1"]
