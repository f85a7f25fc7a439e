"""States of fully connected layers that settle: the two phases of equilibrium propagation.

B. Scellier, Y. Bengio, Frontiers in Computational Neuroscience 11, 2017.

    image x ⇄ s1 ⇄ s2 ⇄ … ⇄ sL          free: settle, T steps
                              └ β pull    nudged: go on, a few steps
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.errors import NetworkError
from ranges import PositiveFloat, PositiveInt

Layers = Sequence[nn.Linear]
"""From the pixels upwards; layer l draws the state s_l, ``(B, width)``."""
Pull = Callable[[Tensor], Tensor]
"""The last state → what it is drawn by, ``(B, width)``, without β."""

_KNOWN = nn.Flatten, nn.Dropout, nn.Linear, nn.Hardtanh


@dataclass(frozen=True)
class Settling:
    """How states settle: s_l towards W_l s_{l−1} + b_l + W_{l+1}ᵀ s_{l+1}, clamped to 0 … 1, all layers at once.

    Args:
        free_steps: T, of the free phase.
        nudged_steps: of the nudged phase.
        step_size: dt.
        beta: β, strength of the nudge.
        nudging: its sign is drawn for every batch, or both signs are taken and halved.
    """

    free_steps: PositiveInt = 40
    nudged_steps: PositiveInt = 10
    step_size: PositiveFloat = 0.2
    beta: PositiveFloat = 0.2
    nudging: Literal["random_sign", "symmetric"] = "random_sign"

    def free(self, layers: Layers, x: Tensor, masks: Sequence[Tensor] = ()) -> list[Tensor]:
        """States of the free phase, which begin at 0.

        Args:
            layers: those whose states settle.
            x: pixels, ``(B, C·H·W)``, which stay as they are.
            masks: 1 or 0 for every unit of each state, 0 for one that stays at 0; all 1 by default.
        """
        rest = [x.new_zeros(x.shape[0], layer.out_features) for layer in layers]
        return self._settled(layers, x, rest, masks or [*map(torch.ones_like, rest)], self.free_steps)

    def nudged(
        self, layers: Layers, x: Tensor, free: Sequence[Tensor], masks: Sequence[Tensor], pull: Pull
    ) -> list[tuple[float, list[Tensor]]]:
        """Signed β and the states of a nudged phase, which begin at the free ones; of two phases if symmetric."""
        signs = (1, -1) if self.nudging == "symmetric" else (1 - 2 * int(torch.randint(2, ())),)
        strengths = [sign * self.beta for sign in signs]
        return [(b, self._settled(layers, x, free, masks, self.nudged_steps, pull, b)) for b in strengths]

    def _settled(
        self,
        layers: Layers,
        x: Tensor,
        states: Sequence[Tensor],
        masks: Sequence[Tensor],
        steps: int,
        pull: Pull | None = None,
        beta: float = 0.0,
    ) -> list[Tensor]:
        first, *others = layers
        states, below = list(states), first(x)
        for _ in range(steps):
            drives = [below, *(layer(s) for layer, s in zip(others, states, strict=False))]
            for i, above in enumerate(others):
                drives[i] = drives[i] + states[i + 1] @ above.weight
            if pull is not None:
                drives[-1] = drives[-1] + beta * pull(states[-1])
            states = [
                mask * (s + self.step_size * (drive - s)).clamp(0, 1)
                for s, drive, mask in zip(states, drives, masks, strict=True)
            ]
        return states


def contrast(
    layers: Layers, x: Tensor, free: Sequence[Tensor], nudged: Sequence[tuple[float, Sequence[Tensor]]]
) -> Tensor:
    """Mean over images and phases of (free − nudged energy) / β: its gradient is equilibrium propagation's update."""
    phases = [(energy(layers, x, free) - energy(layers, x, states)) / beta for beta, states in nudged]
    return torch.stack(phases).mean() / len(x)


def energy(layers: Layers, x: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Σ s_l · (W_l s_{l−1} + b_l) over layers and images: the part of −E that weights are in."""
    pairs = zip(layers, (x, *states), states, strict=False)
    return torch.stack([(F.linear(below, layer.weight, layer.bias) * s).sum() for layer, below, s in pairs]).sum()


def linear_layers(parts: Iterable[nn.Module]) -> list[nn.Linear]:
    """Those of parts of a network, in order."""
    return [module for part in parts for module in part.modules() if isinstance(module, nn.Linear)]


def drawn_masks(parts: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """1 or 0 for all that the linear layers of parts read, as their dropouts say; what is kept is not enlarged.

    Args:
        parts: of a network.
        x: pixels, ``(B, C·H·W)``.
    """
    masks, kept = [], 1.0
    for module in (module for part in parts for module in part.modules()):
        if isinstance(module, nn.Dropout):
            kept *= 1 - module.p
        elif isinstance(module, nn.Linear):
            masks.append(x.new_full((len(x), module.in_features), kept).bernoulli())
            kept = 1.0
    return masks


def require_settling(parts: Iterable[nn.Module]) -> None:
    """See that states of parts of a network can settle.

    Raises:
        NetworkError: there is a layer of another kind.
    """
    modules = [module for part in parts for module in part.modules() if not any(module.children())]
    if strange := [type(module).__name__ for module in modules if not isinstance(module, _KNOWN)]:
        raise NetworkError(
            f"States settle between 0 and 1 in fully connected layers; this network has a {strange[0]}. Take an "
            "MLP with batch_norm: false and clamped: true."
        )
