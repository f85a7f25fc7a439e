"""Communication hooks of DDP: how what several processes send is averaged, and the bytes that it takes."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from losses.errors import UsageError
from ranges import PositiveInt


class CommunicationHook(ABC):
    """Averages gradients, or another payload, over the processes, and counts what this process sends.

    Counted is the message of one process, as if it were sent once: what an all-reduce passes around for it depends on
    the network. Use it with :class:`CompressedDDP`, or on a ``DistributedDataParallel`` by :meth:`register`.

    Attributes:
        calibrating: whether the run is in the epoch from which references are taken.
        measuring: whether metrics that cost time are wanted of the next exchange.
        metrics: name → value of the last exchange, for the loggers.
        steps: exchanges so far: with gradients, one in every step.
        total_bytes: sent in all of them.
    """

    def __init__(self) -> None:
        self.calibrating, self.measuring = True, False
        self.metrics: dict[str, float] = {}
        self.steps, self.total_bytes = 0, 0
        self._names: dict[Tensor, str] = {}
        self._parameters = 0
        self._bytes = 0

    def register(self, model: DistributedDataParallel) -> None:
        """Have a model's gradients averaged by this hook."""
        self.name_parameters(model.module)
        model.register_comm_hook(self, type(self).average)

    def name_parameters(self, module: nn.Module) -> None:
        """Learn what the parameters are called: buckets hold only themselves."""
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        self._parameters = sum(p.numel() for p in self._names if p.requires_grad)

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """What DDP calls for every bucket.

        Raises:
            UsageError: there are no processes that could communicate.
        """
        if not dist.is_initialized():
            raise UsageError(
                f"{type(self).__name__} averages gradients over processes, and there is no process group: use it "
                "through --trainer.strategy CompressedDDP, or call torch.distributed.init_process_group first."
            )
        if bucket.index() == 0:
            self._bytes, self.metrics = 0, {}
        averaged, sent = self.exchange(bucket)
        self._bytes += sent
        if bucket.is_last():
            self.steps += 1
            self.total_bytes += self._bytes
            self.metrics |= self.traffic(self._bytes, 1) | {"megabytes": self.total_bytes / 1e6}
        return averaged

    @abstractmethod
    def exchange(self, bucket: dist.GradBucket) -> tuple[Future[Tensor], int]:
        """Average a bucket: a future of its buffer, and the bytes of this process' message for it."""

    def traffic(self, sent: int, steps: int) -> dict[str, float]:
        """What so many bytes in so many exchanges are: bits per parameter, ratio to float32, bytes per exchange."""
        bits = 8 * sent / (steps * self._parameters)
        return {"bits_per_parameter": bits, "ratio": 32 / bits, "bytes_per_step": sent / steps}

    def summary(self) -> dict[str, float]:
        """Means over all exchanges, as :meth:`traffic` has them; megabytes (10⁶) of all."""
        if not self.steps:
            return {}
        return self.traffic(self.total_bytes, self.steps) | {"megabytes": self.total_bytes / 1e6}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of this process."""
        return {"steps": self.steps, "total_bytes": self.total_bytes}

    def load_state_dict(self, state_dict: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Go on where a checkpoint stood."""
        self.steps, self.total_bytes = state_dict["steps"], state_dict["total_bytes"]


class Uncompressed(CommunicationHook):
    """DDP's own all-reduce of float32 gradients: the yardstick."""

    @override
    def exchange(self, bucket: dist.GradBucket) -> tuple[Future[Tensor], int]:
        return allreduce_hook(None, bucket), bucket.buffer().nbytes  # type: ignore[arg-type]  # None: all processes


class HalfPrecision(CommunicationHook):
    """Gradients are averaged in float16: torch's ``fp16_compress_hook``."""

    @override
    def exchange(self, bucket: dist.GradBucket) -> tuple[Future[Tensor], int]:
        size = 2 * bucket.buffer().numel()
        return fp16_compress_hook(None, bucket), size  # type: ignore[arg-type]  # None: all processes


class PowerSGD(CommunicationHook):
    """Low-rank gradients with error feedback (Vogels, Karimireddy & Jaggi, NeurIPS 2019): torch's ``powerSGD_hook``.

    Torch keys its memory by bucket, and buckets change: it is not kept in checkpoints. A resumed run begins anew with
    ``start`` uncompressed steps, and is therefore not the run that it would have been.

    Args:
        rank: of the matrices that are sent.
        start: first steps, uncompressed (at least 2).

    Raises:
        UsageError: compression would start before torch's buckets have settled.
    """

    def __init__(self, rank: PositiveInt = 2, start: PositiveInt = 10) -> None:
        super().__init__()
        if rank < 1 or start < 2:
            raise UsageError(f"PowerSGD needs rank ≥ 1 and start ≥ 2, not {rank} and {start}.")
        self._state = PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=start)
        self._counted = 0

    @override
    def exchange(self, bucket: dist.GradBucket) -> tuple[Future[Tensor], int]:
        """Sent are four bytes a number of the low-rank matrices, and of what is not worth compressing."""
        averaged = powerSGD_hook(self._state, bucket)
        _, _, numbers = self._state.compression_stats()
        sent, self._counted = numbers - self._counted, numbers
        return averaged, 4 * sent if sent else bucket.buffer().nbytes
