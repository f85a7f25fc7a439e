"""A progress bar with one accuracy per block."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import TQDMProgressBar
from typing_extensions import override

from models.method import Method

_NAMES = {"train": "train/{block}/top1", "val": "val/{block}/top1", "probe": "probe_online/{block}/{features}/top1"}


class BlockProgressBar(TQDMProgressBar):
    """Shows ``val top-1 % 81 90 95``: each block's accuracy on the validation images, in order, the final head's last.

    ``train top-1 %`` is that of the last logged batch, ``probe top-1 %`` that of the online probes on the
    validation images.
    """

    @override
    def get_metrics(self, trainer: L.Trainer, pl_module: Method) -> dict[str, Any]:
        return accuracies(pl_module.latest | trainer.callback_metrics, pl_module, ("train", "val", "probe"))


def accuracies(metrics: Mapping[str, Any], model: Method, kinds: Sequence[str]) -> dict[str, str]:
    """``<kind> top-1 %`` → each block's accuracy, of those kinds (``train``, ``val``, ``probe``) that there are.

    Of many blocks every other one is shown, until at most eight remain, the last always.
    """
    shown = {}
    for kind in kinds:
        names = [_NAMES[kind].format(block=block, features=model.judged_features) for block in model.part_names]
        names = [name for name in names if name in metrics]
        while len(names) > 8:
            names = names[-1::-2][::-1]
        if names:
            shown[f"{kind} top-1 %"] = " ".join(f"{100 * metrics[name]:.1f}" for name in names)
    return shown
