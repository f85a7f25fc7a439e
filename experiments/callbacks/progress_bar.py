"""A progress bar with one accuracy per block."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import TQDMProgressBar
from typing_extensions import override

from models.method import Method

_NAMES = {"train": "train/{block}/top1", "val": "val/{block}/top1", "probe": "probe_online/{block}/{features}/top1"}


class BlockProgressBar(TQDMProgressBar):
    """Shows ``val top-1 % 81 90 95``: each block's accuracy on the validation images, in order; then ``final 96``.

    ``train top-1 %`` is that of the last logged batch, ``probe top-1 %`` that of the online probes on the
    validation images.
    """

    @override
    def get_metrics(self, trainer: L.Trainer, pl_module: Method) -> dict[str, Any]:
        return accuracies(pl_module.latest | trainer.callback_metrics, pl_module, ("train", "val", "probe"))


def accuracies(metrics: Mapping[str, Any], model: Method, kinds: Sequence[str]) -> dict[str, str]:
    """``<kind> top-1 %`` → each block's accuracy, of those kinds (``train``, ``val``, ``probe``) that there are.

    That of a final head is named. Of many blocks every other one is shown, until at most eight remain, the last always.
    """
    shown = {}
    for kind in kinds:
        names = {part: _NAMES[kind].format(block=part, features=model.judged_features) for part in model.part_names}
        parts = [part for part, name in names.items() if name in metrics]
        while len(parts) > 8:
            parts = parts[-1::-2][::-1]
        if parts:
            heads = {part: "" if part in model.block_names else f"{part} " for part in parts}
            shown[f"{kind} top-1 %"] = " ".join(f"{heads[part]}{100 * metrics[names[part]]:.1f}" for part in parts)
    return shown
