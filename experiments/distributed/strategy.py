"""Lightning's DDP with a communication hook, on any device."""

from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from experiments.distributed.hooks import CommunicationHook
from losses.errors import UsageError


class CompressedDDP(DDPStrategy):
    """DDP whose gradients are averaged by a hook: ``--trainer.strategy CompressedDDP``.

    Lightning 2.6 registers hooks on CUDA only and drops them silently elsewhere; this strategy registers its own on
    every device. What each process' hook remembers goes into checkpoints; a run resumed with as many processes goes
    on exactly. Networks of one block only: several blocks take a backward pass each.

    Args:
        hook: how gradients are averaged.

    Raises:
        UsageError: a checkpoint to resume from was written by more or fewer processes.
    """

    def __init__(self, hook: CommunicationHook) -> None:
        super().__init__()
        self.hook = hook

    @override
    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)  # from now on
        self.hook.register(self.model)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save, with what the hooks of all processes remember."""
        states: list[Any] = [None] * self.world_size
        dist.all_gather_object(states, self.hook.state_dict())
        super().save_checkpoint(checkpoint | {"communication": states}, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load, and give the hook what it remembered; nothing if the checkpoint is of a run without one."""
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        states, module = checkpoint.pop("communication", None), self.lightning_module
        if states is not None and module and module.trainer.training:
            if len(states) != self.world_size:
                raise UsageError(
                    f"The checkpoint {checkpoint_path} was written by {len(states)} processes, each with what it had "
                    f"not sent yet: go on with --trainer.devices {len(states)}, not {self.world_size}."
                )
            self.hook.load_state_dict(states[self.global_rank], self.root_device)
        return checkpoint
