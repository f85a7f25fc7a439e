"""What a run goes on from is put back in its places; faults of that name the checkpoint."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from experiments.run.checkpoint import offer_previous
from experiments.run.errors import RunError
from losses.errors import UsageError


class Restoring(_CheckpointConnector):
    """Lightning's way to restore a checkpoint, which takes whatever it finds in one for what it should be."""

    @override
    def _restore_modules_and_callbacks(self, *args: Any, **options: Any) -> None:
        with self._faults_told():
            super()._restore_modules_and_callbacks(*args, **options)

    @override
    def restore_training_state(self) -> None:
        """Restore loops, optimizers and schedules; what an optimizer remembers of a weight has its shape, or less.

        Raises:
            RunError: the checkpoint lacks something, or something in it is strange, or an epoch would have no end.
        """
        with self._faults_told():
            restored = self._loaded_checkpoint and self.trainer.state.fn == TrainerFn.FITTING
            if restored:
                self._require_an_epochs_end(self._loaded_checkpoint["loops"]["fit_loop"])
            super().restore_training_state()
            for optimizer in self.trainer.optimizers if restored else ():
                for weight, remembered in optimizer.state.items():
                    for value in filter(torch.is_tensor, remembered.values()):
                        value.expand_as(weight)

    def _require_an_epochs_end(self, loop: Mapping[str, Any]) -> None:
        """See that no epoch was cut off behind its last batch: Lightning would go on without what comes at its end."""
        epoch = loop["epoch_progress"]["current"]
        if loop["epoch_loop.batch_progress"]["is_last_batch"] and epoch["processed"] < epoch["ready"]:
            raise RunError(
                f"The checkpoint {self._ckpt_path} was saved behind the last batch of an epoch and before its end, at "
                "which schedules step: go on from a last.ckpt, or from one that was saved at another step."
            )

    @contextlib.contextmanager
    def _faults_told(self) -> Iterator[None]:
        try:
            yield
        except (UsageError, MisconfigurationException, OSError):
            raise
        except Exception as fault:  # of whatever kind: each part of a checkpoint is read by whose it is
            path = Path(str(self._ckpt_path))
            why = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
            raise RunError(f"The checkpoint {path} cannot be gone on from ({why}).{offer_previous(path)}") from fault
