"""The weights that training begins with, taken from another run."""

from pathlib import Path

import lightning.pytorch as L
from typing_extensions import override

from experiments.run.checkpoint import find_checkpoint, load_checkpoint, network_differences, require_same_images, units
from experiments.run.errors import RunError
from losses.errors import UsageError
from models.local_learning import LocalLearning
from ranges import PositiveInt


class StartFrom(L.Callback):
    """Begins with the blocks of another run of the same network; heads are drawn anew.

    The other run may have cut the network elsewhere, or trained it in another way (end to end, with labels): its units
    are known by their names. ``--model.frozen_blocks n`` keeps the first n blocks as they begin. A resumed run goes on
    from its own checkpoint.

    Args:
        run: the other run's folder, or a checkpoint file in it; a name alone is that of a run beside this one.
        blocks: how many of the first blocks begin so; all by default.
    """

    changes_training = True

    def __init__(self, run: str, blocks: PositiveInt | None = None) -> None:
        self.run, self.blocks = run, blocks

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the weights, unless a checkpoint of this run was read.

        Raises:
            RunError: there is no such run, or it is of another network or of images of another size.
            UsageError: the method has no blocks of units.
        """
        if trainer.global_step:
            return
        if not isinstance(pl_module, LocalLearning):
            raise UsageError(f"StartFrom reads the units of a network, and {type(pl_module).__name__} has none.")
        beside = Path(trainer.default_root_dir).parent / self.run
        file = find_checkpoint(beside if beside.exists() else Path(self.run))
        saved = load_checkpoint(file)
        require_same_images(file, saved, pl_module.image_shape)
        theirs = units(saved["state_dict"])
        for name, block in zip(pl_module.block_names[: self.blocks], pl_module.blocks, strict=False):
            weights = {key: theirs[key] for key in block.state_dict() if key in theirs}
            if differences := network_differences(weights, block):
                raise RunError(
                    f"{name} cannot begin with the weights of {file}, which is of another network: {differences[0]} "
                    f"({len(differences)} differences)."
                )
            block.load_state_dict(weights)
