"""What a run goes on from is put back in its places; faults of that name the checkpoint."""

import contextlib
from collections.abc import Iterator
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
            RunError: the checkpoint lacks something, or something in it is strange.
        """
        with self._faults_told():
            super().restore_training_state()
            restored = self._loaded_checkpoint and self.trainer.state.fn == TrainerFn.FITTING
            for optimizer in self.trainer.optimizers if restored else ():
                for weight, remembered in optimizer.state.items():
                    for value in filter(torch.is_tensor, remembered.values()):
                        value.expand_as(weight)

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
