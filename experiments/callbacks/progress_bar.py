"""A progress bar with one accuracy per block."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import TQDMProgressBar
from typing_extensions import override

from models.method import Method

_NAMES = {"train": "train/{}/top1", "val": "val/{}/top1", "probe": "probe_online/{}/gap/top1"}


class BlockProgressBar(TQDMProgressBar):
    """Shows ``val top-1 % 81 90 95``: each block's accuracy on the validation images, in order, the final head's last.

    ``train top-1 %`` is that of the last logged batch, ``probe top-1 %`` that of the online probes on the
    validation images.
    """

    @override
    def get_metrics(self, trainer: L.Trainer, pl_module: Method) -> dict[str, Any]:
        return accuracies(pl_module.latest | trainer.callback_metrics, pl_module.part_names, ("train", "val", "probe"))


def accuracies(metrics: Mapping[str, Any], blocks: Sequence[str], kinds: Sequence[str]) -> dict[str, str]:
    """``<kind> top-1 %`` → each block's accuracy, of those kinds (``train``, ``val``, ``probe``) that there are.

    Of many blocks every other one is shown, until at most eight remain, the last always.
    """
    shown = {}
    for kind in kinds:
        names = [name for name in map(_NAMES[kind].format, blocks) if name in metrics]
        while len(names) > 8:
            names = names[-1::-2][::-1]
        if names:
            shown[f"{kind} top-1 %"] = " ".join(f"{100 * metrics[name]:.1f}" for name in names)
    return shown
