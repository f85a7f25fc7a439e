"""DDP with a communication hook, on any device."""

from typing import Any, ClassVar

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import override

from experiments.distributed.ddp import DDP
from experiments.distributed.hooks import CommunicationHook
from experiments.distributed.payloads import Gradients, Payload
from losses.errors import UsageError
from ranges import PositiveInt

OPTIMIZERS = "optimizer_states"
"""Their key in Lightning's checkpoints."""


class CompressedDDP(DDP):
    """DDP whose processes average by a hook what they send: ``--trainer.strategy CompressedDDP``.

    Lightning 2.6 registers hooks on CUDA only and drops them silently elsewhere; this strategy registers its own on
    every device. What each process' hook remembers goes into checkpoints; a run resumed with as many processes goes
    on exactly. Networks of one block only: several blocks take a backward pass each.

    Args:
        hook: how what is sent is averaged.
        payload: what is sent: gradients, or every few steps weights or their change.
        timeout: as :class:`DDP` has it.

    Raises:
        UsageError: a checkpoint to resume from was written by more or fewer processes.
    """

    steps_by_block: ClassVar[bool] = False

    def __init__(self, hook: CommunicationHook, payload: Payload = Gradients(), timeout: PositiveInt = 600) -> None:
        super().__init__(timeout)
        self.hook, self.payload = hook, payload

    @override
    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)  # from now on
        self.payload.register(self.model, self.hook)

    # -- when weights are exchanged -----------------------------------------------------------

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        self.payload.start()

    @override
    def optimizer_step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        output = super().optimizer_step(optimizer, *args, **kwargs)
        module = self.lightning_module
        self.payload.after_step(last=module is not None and module.trainer.is_last_batch)
        return output

    @override
    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.payload.settle()

    @override
    def on_train_end(self) -> None:
        self.payload.settle()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the model, from all processes."""
        self.payload.settle()
        return super().lightning_module_state_dict()

    # -- checkpoints --------------------------------------------------------------------------

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save, with what the hooks of all processes remember, and their optimizers where these differ."""
        states: list[Any] = [None] * self.world_size
        differing = {OPTIMIZERS} if self.payload.replicas_differ else set()
        own = {key: checkpoint[key] for key in differing & checkpoint.keys()}
        dist.all_gather_object(states, self.hook.state_dict() | own)
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
            own = states[self.global_rank]
            self.hook.load_state_dict(own, self.root_device)
            if self.payload.replicas_differ and OPTIMIZERS in own:
                checkpoint[OPTIMIZERS] = own[OPTIMIZERS]
        return checkpoint
