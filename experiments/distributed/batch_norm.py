"""BatchNorm over the images of all processes: ``--trainer.sync_batchnorm true``."""

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import UsageError
from losses.processes import Sharing, mean_over_processes, process_count
from models.networks.memory.recomputed import Recomputed


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's, on a CPU too, where its own has no operators."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, C, …)`` by mean and variance over all processes, in training."""
        if input.is_meta:  # one process counts what the layer costs
            return super(nn.SyncBatchNorm, self).forward(input)
        if not (self.training and dist.is_initialized()) or input.device.type != "cpu":
            return super().forward(input)
        shape = [1, -1] + [1] * (input.dim() - 2)
        over = [dim for dim in range(input.dim()) if dim != 1]
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = mean_over_processes(x.mean(over))  # (C,)
        x = x - mean.view(shape)
        variance = mean_over_processes(x.square().mean(over))  # (C,)
        self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1] * process_count())
        x = x * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.track_running_stats:
            seen = dict(self.named_buffers())
            seen["num_batches_tracked"].add_(1)
            momentum = 1 / float(seen["num_batches_tracked"]) if self.momentum is None else self.momentum
            seen["running_mean"].lerp_(mean, momentum)
            seen["running_var"].lerp_(variance * (count / (count - 1)), momentum)


class SyncedBatchNorm(TorchSyncBatchNorm):
    """Lightning's plugin, with the layer above."""

    @override
    def apply(self, model: nn.Module) -> nn.Module:
        """The model, all of whose BatchNorm layers see the images of all processes.

        Raises:
            UsageError: BatchNorm is computed again in backward passes, from the images of one process.
        """
        if any(isinstance(part, Recomputed) for part in model.modules()):
            raise UsageError(
                "Pieces that are computed again know the images of their own process only: leave "
                "--trainer.sync_batchnorm or --model.recompute out."
            )
        model = super().apply(model)
        for part in model.modules():
            if type(part) is nn.SyncBatchNorm:
                part.__class__, part.process_group = SyncBatchNorm, Sharing.group
        return model
