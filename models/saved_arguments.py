"""A model that its checkpoint can build again."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import lightning.pytorch as L
import torch
from typing_extensions import override

from losses.errors import UsageError


class SavedArguments(L.LightningModule):
    """A LightningModule whose checkpoints hold what it was built from, if :meth:`keep_arguments` was called.

    ``fit`` calls it. Then ``DecoupledGreedy.load_from_checkpoint(path)`` needs no arguments, and no data set.
    """

    # In Lightning's own place, "hyper_parameters", they would override what is typed beside --ckpt_path FILE.
    CHECKPOINT_HYPER_PARAMS_KEY = "arguments"

    def keep_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Have checkpoints hold what this model was built from.

        Args:
            arguments: those of the constructor, plain as in a YAML.
        """
        built = type(self)
        how = {
            "_class_path": f"{built.__module__}.{built.__qualname__}",
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
        }
        self.save_hyperparameters({**arguments, **how}, logger=False)

    @classmethod
    @override
    def load_from_checkpoint(cls, checkpoint_path: Any, *options: Any, **arguments: Any) -> Self:
        """The model that a run saved: built from the arguments in its checkpoint, with its weights.

        Args:
            checkpoint_path: the file.
            options: Lightning's, such as ``map_location``; by name they may be among the arguments.
            arguments: of the constructor, where they shall be others than the saved ones.

        Raises:
            UsageError: the checkpoint is of another class, or a folder.
        """
        try:
            saved = torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)
        except IsADirectoryError as fault:
            file = Path(checkpoint_path, "checkpoints", "last.ckpt")
            raise UsageError(f"{checkpoint_path} is a folder: give the checkpoint in it, {file}.") from fault
        kept = saved.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})
        module, _, name = kept.get("_class_path", "").rpartition(".")
        built = getattr(sys.modules.get(module), name, None) if kept else cls
        if not (isinstance(built, type) and issubclass(built, cls)):
            raise UsageError(
                f"{checkpoint_path} is a checkpoint of {name}, not of {cls.__name__}: import {name} from {module}, and "
                f"call {name}.load_from_checkpoint."
            )
        return super(SavedArguments, built).load_from_checkpoint(checkpoint_path, *options, **arguments)
