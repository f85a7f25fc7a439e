"""What the processes of a run send each other, and when."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from experiments.distributed.hooks import CommunicationHook
from losses.errors import UsageError
from ranges import PositiveInt


class Payload(ABC):
    """What a hook averages over the processes; a subclass says when it is sent.

    Attributes:
        replicas_differ: whether weights and optimizers of the processes differ between two exchanges.
    """

    replicas_differ = False

    @abstractmethod
    def register(self, model: DistributedDataParallel, hook: CommunicationHook) -> None:
        """Have what a model's processes learn averaged by a hook."""

    # Not abstract, though empty: where gradients travel there is nothing to do at these moments.

    def start(self) -> None:  # noqa: B027
        """Training begins, with weights that all processes share."""

    def after_step(self, last: bool) -> None:  # noqa: B027
        """The optimizer has stepped; ``last``: in the epoch's last batch."""

    def settle(self) -> None:  # noqa: B027
        """Have all processes share their weights: somebody is about to look at them."""


class Gradients(Payload):
    """Gradients, in every step."""

    @override
    def register(self, model: DistributedDataParallel, hook: CommunicationHook) -> None:
        hook.register(model)


class Weights(Payload):
    """Weights, after some steps in which every process learned alone.

        W ← mean over the processes of what their messages decode to

    The weights that training goes on from, that are evaluated and saved, are what was decoded: a run's accuracy is that
    of its coded weights. What coding left out of them comes back in the next exchange (error feedback). Each process
    keeps its own optimizer. Weights are also exchanged at the end of every epoch and before a checkpoint or a
    validation within one.

    Our reading of weight coding in A. Øland's thesis (CMU-CS-24-147), whose text was not available.

    Args:
        every: optimizer steps between two exchanges.

    Raises:
        UsageError: fewer than one.
    """

    replicas_differ = True

    def __init__(self, every: PositiveInt = 8) -> None:
        if every < 1:
            raise UsageError(f"Weights are exchanged every so many steps: every must be at least 1, not {every}.")
        self.every = every
        self._alone = 0  # steps since the last exchange

    @override
    def register(self, model: DistributedDataParallel, hook: CommunicationHook) -> None:
        model.register_comm_hook(None, noop_hook)
        hook.name_parameters(model.module)
        self._hook = hook
        self._parameters = [parameter for parameter in model.module.parameters() if parameter.requires_grad]

    @override
    def after_step(self, last: bool) -> None:
        self._alone += 1
        if last or self._alone == self.every:
            self.settle()

    @override
    def settle(self) -> None:
        if self._alone:
            # Validation runs in inference mode, but for gloo; its tensors could not be kept for the next exchange.
            with torch.inference_mode(False), torch.no_grad():
                self._exchange()
            self._alone = 0

    def _exchange(self) -> None:
        numbers = _flat(self._parameters)
        known = self._known(numbers)
        bucket = _Bucket(self._parameters, numbers - known)
        averaged = known + self._hook.average(cast(dist.GradBucket, bucket)).wait()
        for parameter, values in zip(self._parameters, _split(averaged, self._parameters), strict=True):
            parameter.copy_(values)

    def _known(self, numbers: Tensor) -> Tensor:
        """What the receivers of ``numbers`` have of them already, ``(n,)``."""
        return torch.zeros_like(numbers)


class WeightDelta(Weights):
    """The change of the weights since the last exchange, after some steps in which every process learned alone.

        W ← W_last + mean over the processes of what their messages of W − W_last decode to

    The changes shrink with the learning rate, so that a fixed step takes many bits early and few late.
    """

    @override
    def start(self) -> None:
        self._last = _flat(self._parameters)

    @override
    def _exchange(self) -> None:
        super()._exchange()
        self._last = _flat(self._parameters)

    @override
    def _known(self, numbers: Tensor) -> Tensor:
        return self._last


@dataclass
class _Bucket:
    """Numbers of all parameters, as a communication hook gets the gradients of some from DDP."""

    of: Sequence[nn.Parameter]
    numbers: Tensor

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True

    def parameters(self) -> Sequence[nn.Parameter]:
        return self.of

    def buffer(self) -> Tensor:
        return self.numbers

    def gradients(self) -> list[Tensor]:
        """Views of the buffer."""
        return _split(self.numbers, self.of)


def _flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """A copy of all numbers of them, ``(n,)``."""
    return nn.utils.parameters_to_vector(parameters).detach()


def _split(numbers: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Numbers of all parameters, as views in their shapes."""
    parts = numbers.split([parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
