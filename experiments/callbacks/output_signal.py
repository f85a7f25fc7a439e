"""How much of an output loss reaches the logits and the first weights, and what confident mistakes send back."""

from typing import Any

import lightning.pytorch as L
from torch import Tensor
from typing_extensions import override

from losses.errors import UsageError
from models.classification import LocalClassification
from models.method import LabelledImages
from ranges import Share


class OutputSignal(L.Callback):
    """Logs ``train/block<k>/output_signal/…`` of every block that predicts, in the steps that are logged.

    A squashed output under a square loss sends nothing back where it is wrong and sure, which shows as
    ``delta_confident_wrong`` near 0 beside a share ``confident_wrong`` that does not fall.

    - ``delta``: mean over the samples of ‖δ‖, δ the gradient of a sample's loss with respect to its logits;
    - ``confident_wrong``: share of samples that are predicted wrongly with a largest softmax above ``confidence``
      (logits that are no log-probabilities may hardly ever be that sure: linear outputs near 0 and 1, say);
    - ``delta_confident_wrong``: mean ‖δ‖ of these, if there are any;
    - ``largest_logit``: largest |z|;
    - ``first_weight_gradient``: norm of the block's loss's gradient with respect to its first weight, before clipping.

    Of neuron groups each prediction counts as a sample; their diversity is not in δ, but is in the weight's gradient.

    Args:
        confidence: above which a prediction is sure.

    Raises:
        UsageError: blocks are trained without labels, or the confidence is no probability.
    """

    def __init__(self, confidence: Share = 0.9) -> None:
        self.confidence = confidence

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, LocalClassification):
            raise UsageError("OutputSignal watches predictions of classes: leave it out of training without labels.")
        pl_module.require_shared_batch(type(self).__name__)
        if not 0 <= self.confidence < 1:
            raise UsageError(f"confidence is a probability, from 0 to below 1, not {self.confidence}.")

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: LocalClassification, *_: Any) -> None:
        """Note the first weight's gradient of the block that is being updated: no other block holds gradients now."""
        for k in pl_module.learners if pl_module.logs_this_step else ():
            weight = next(p for p in pl_module.block_parameters(k) if p.dim() > 1)
            if weight.grad is not None:
                pl_module.record(k, "output_signal/first_weight_gradient", pl_module.total_norm(k, [weight.grad]))

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LocalClassification, outputs: Any, batch: LabelledImages, batch_idx: int
    ) -> None:
        """Note what the logits of every block were sent."""
        for k, logits in pl_module.logits_of.items() if pl_module.logs_this_step else ():
            z = logits.flatten(0, -2).float()  # (B, C), or of G groups (B·G, C)
            labels = batch.labels.repeat_interleave(len(z) // len(batch.labels))
            for name, value in self.metrics(z, labels, pl_module.output_loss.delta(z, labels)).items():
                pl_module.record(k, f"output_signal/{name}", value)

    def metrics(self, logits: Tensor, labels: Tensor, delta: Tensor) -> dict[str, Tensor]:
        """What is logged of logits ``(B, C)``, labels ``(B,)`` and δ ``(B, C)``."""
        norms = delta.norm(dim=1)
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        mistakes = (confidence > self.confidence) & (predicted != labels)
        metrics = {
            "delta": norms.mean(),
            "largest_logit": logits.abs().max(),
            "confident_wrong": mistakes.float().mean(),
        }
        return metrics | ({"delta_confident_wrong": norms[mistakes].mean()} if mistakes.any() else {})
