"""A linear classifier per block that learns beside the run, on features that the run computes anyway.

Own, because lightly's ``OnlineLinearClassifier`` is a module of ``pytorch_lightning``, which does not mix with
``lightning.pytorch``, and would have to be trained within the method's own step and optimizer.
"""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from experiments.distributed.averages import Average
from experiments.probing.linear_probe import linear_head
from losses.processes import process_count
from models.features import pooled
from models.local_learning import LocalLearning
from models.method import LabelledImages
from models.metrics import EvaluationMetrics
from ranges import PositiveFloat


class OnlineProbe(L.Callback):
    """Logs ``probe_online/block<k>/gap/top1`` on the validation images after every epoch.

    A classifier reads its block's detached output, averaged over positions (or another kind of features, if
    :attr:`models.method.Method.judged_features` says so, under the name of that kind), and has an optimizer of
    its own: SGD, momentum 0.9. It takes the first output that each block makes of a batch (of views
    one above the other the first B rows), so no image goes through the network for its sake, and
    neither weights nor BatchNorm statistics of the network are touched. Of logged steps
    ``train/block<k>/probe_online/loss`` and ``…/top1`` are logged. A resumed run continues its classifiers.
    Of several processes all have the same classifiers, which learn from the whole batch.

    Args:
        learning_rate: of the classifiers.
    """

    def __init__(self, learning_rate: PositiveFloat = 0.1) -> None:
        self.learning_rate = learning_rate
        self.heads: dict[str, nn.Linear] = {}
        self._optimizers: dict[str, SGD] = {}
        self._features: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self._resumed: dict[str, Any] = {}
        self._merged: Callable[[dict[str, Any]], dict[str, Any]] = dict  # of what all processes have learned
        self._own: set[str] = set()  # blocks that learn in this process

    @override
    def setup(self, trainer: L.Trainer, pl_module: LocalLearning, stage: str) -> None:
        pl_module.require_shared_batch(type(self).__name__)
        if stage in ("fit", "validate"):
            named = zip(pl_module.block_names, pl_module.judged_modules, strict=True)
            self._hooks = [module.register_forward_hook(self._listener(name)) for name, module in named]

    @override
    def teardown(self, trainer: L.Trainer, pl_module: LocalLearning, stage: str) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _listener(self, name: str) -> Any:
        def keep(block: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
            if name not in self._features:
                features = output[0] if isinstance(output, tuple) else output  # the others are for the loss
                self._features[name] = pooled(features.detach())

        return keep

    def _taken(self, batch: LabelledImages) -> dict[str, Tensor]:
        """Block → features ``(B, d)`` of this batch, which are forgotten."""
        taken, self._features = self._features, {}
        return {name: features[: len(batch.labels)].float() for name, features in taken.items()}

    @override
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        """Forget what was heard between batches."""
        self._features = {}

    on_validation_batch_start = on_train_batch_start

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LocalLearning, outputs: Any, batch: LabelledImages, batch_idx: int
    ) -> None:
        """One step of every classifier."""
        for name, features in self._taken(batch).items():
            if name not in self.heads:
                self._add(name, features.shape[1], pl_module)
            logits = self.heads[name](features)
            loss = F.cross_entropy(logits, batch.labels)
            self._optimizers[name].zero_grad()
            loss.backward()
            if process_count() > 1:
                Average(self.heads[name].parameters()).hand_over()
            self._optimizers[name].step()
            if pl_module.logs_this_step:
                k = pl_module.block_names.index(name)
                pl_module.record(k, "probe_online/loss", loss.detach())
                pl_module.record(k, "probe_online/top1", (logits.argmax(1) == batch.labels).float().mean())

    def _add(self, name: str, width: int, pl_module: LocalLearning) -> None:
        generator = torch.Generator().manual_seed(0)
        self.heads[name] = linear_head(width, pl_module.num_classes, generator, pl_module.device)
        self._optimizers[name] = SGD(self.heads[name].parameters(), lr=self.learning_rate, momentum=0.9)

    @override
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: LocalLearning) -> None:
        of_others = {name: state for name, state in self.state_dict().items() if name not in self._own}
        self._restore(of_others, pl_module)
        self._evaluation = EvaluationMetrics(pl_module.num_classes, pl_module.device)

    @override
    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: LocalLearning, outputs: Any, batch: LabelledImages, *_: Any
    ) -> None:
        taken = self._taken(batch).items()
        kind, heads = pl_module.judged_features, self.heads  # of which there is none before the first step
        logits = {f"{name}/{kind}": heads[name](x) for name, x in taken if name in heads}
        self._evaluation.update(logits, batch.labels, {})

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: LocalLearning) -> None:
        pl_module.log_dict({f"probe_online/{name}": share for name, share in self._evaluation.compute().items()})

    @override
    def state_dict(self) -> dict[str, Any]:
        own = self.heads.keys() & self._own
        states = {n: {"head": self.heads[n].state_dict(), "optimizer": self._optimizers[n].state_dict()} for n in own}
        return dict(sorted(self._merged(states).items()))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: LocalLearning) -> None:
        """Build the classifiers of the checkpoint, if there is one: now the device is known."""
        self._merged = getattr(trainer.strategy, "merged", self._merged)
        self._own = {pl_module.part_names[k] for k in pl_module.here}
        resumed, self._resumed = self._resumed, {}
        self._restore(resumed, pl_module)

    def _restore(self, states: dict[str, Any], pl_module: LocalLearning) -> None:
        for name, state in states.items():
            if name not in self.heads:
                self._add(name, state["head"]["weight"].shape[1], pl_module)
            self.heads[name].load_state_dict(state["head"])
            self._optimizers[name].load_state_dict(state["optimizer"])
