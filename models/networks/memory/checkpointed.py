"""Gradient checkpointing of a sequence of units."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential
from typing_extensions import override

from losses.errors import NetworkError


class Checkpointed(nn.Sequential):
    """A sequence of units that forgets its activations and recomputes them segment by segment.

    Args:
        units: a sequence of them.
        segments: how many segments; activations are kept at their borders only.

    Raises:
        NetworkError: more segments than units, or none.
    """

    def __init__(self, units: nn.Module, segments: int) -> None:
        super().__init__(OrderedDict(units.named_children()))
        if not 1 <= segments <= len(self):
            raise NetworkError(f"{len(self)} units: choose checkpoint_segments from 0 to that, not {segments}.")
        self.segments = segments

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # Reentrant, because saved-tensor hooks (our byte meter) do not see what the other kind
        # recomputes; it needs an input that requires a gradient.
        x = x.detach().requires_grad_()
        return checkpoint_sequential(list(self), self.segments, x, use_reentrant=True)
