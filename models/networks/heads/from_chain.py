"""AugLocal's heads: made of units like those that follow in the chain.

C. Ma, J. Wu, C. Si, K. C. Tan, "Scaling Supervised Local Learning with Augmented Auxiliary Networks", ICLR 2024, and
its released code (ChenxiangMA/AugLocal).
"""

import math
from collections.abc import Sequence
from itertools import zip_longest

from torch import nn

from losses.errors import NetworkError
from models.networks.chain import FeatureShape
from models.networks.heads.classifiers import Head
from models.networks.memory.profile import profile
from ranges import NonNegativeInt, PositiveInt, Share


class AugLocalHead(Head):
    """Units of the same kind as some that follow, picked evenly up to the last; then a classifier like the chain's.

    After unit l of L units (counted from 0) the head of depth d has units like number round(l + (L − 1 − l) i / d),
    i = 1 … d, halves rounded to even; all that follow if there are no more. Their weights are their own. A unit halves
    its map where the side is nearer to twice the side of the map of the unit that it is like: strides thus follow the
    sides, which for ResNets is what the released code does by widths. With d = 1 a BatchNorm stands before the
    classifier's last part.

    The depth falls with l, as max(1, round(d (1 − τ s) + τ s)), s = l / (L − d − 2), at most 1: linearly to (d + 1)/2
    with τ = 0.5. The paper's d counts the classifier, too: it is one more.

    The light form (ours) averages maps over 2×2 positions, or more, before a unit reads them.

    Args:
        depth: d; 0: the classifier alone.
        taper: τ; 0: all heads have depth d.
        reduce: by what factor sides are reduced before the first unit, the second and so on; by default by none.

    Raises:
        NetworkError: the features are not those of a chain's unit, or there is no unit behind it, or the chain does
            not say how to make one more of its units.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        num_classes: int,
        depth: NonNegativeInt = 2,
        taper: Share = 0.5,
        reduce: Sequence[PositiveInt] = (),
    ) -> None:
        if not isinstance(feature_shape, FeatureShape):
            raise NetworkError(
                "AugLocalHead is made of units of the network that follow a block's last one, and these features are "
                "not those of a whole block. Use a head of its own layers, such as AuxHead."
            )
        chain, unit = feature_shape.chain, feature_shape.unit
        picks = picked_units(unit, len(chain.units), tapered_depth(depth, unit, len(chain.units), taper))
        if depth and not picks:
            raise NetworkError(
                f"{chain.unit_names[unit]} is the last unit of {chain.name}: there is none behind it that a head could "
                "be made of. Leave its head out (the network's own classifier), or use AuxHead."
            )
        shape: tuple[int, ...] = feature_shape
        layers: list[nn.Module] = []
        sides = [max(cost.output_shape[1:], default=1) for cost, _ in profile(list(chain.units), chain.image_shape)]
        for pick, factor in zip_longest(picks, reduce[: len(picks)], fillvalue=1):
            if factor > 1 and len(shape) == 3:
                shape = (shape[0], *(max(1, side // factor) for side in shape[1:]))
                layers.append(nn.AdaptiveAvgPool2d(shape[1:]))
            halve = len(shape) == 3 and max(shape[1:]) >= math.sqrt(2) * sides[pick] and min(shape[1:]) > 1
            layers.append(chain.unit_like(pick, shape, halve))
            [(cost, _)] = profile(layers[-1:], shape)
            shape = cost.output_shape
        pool, *rest = chain.classifier_like(shape, num_classes)
        norm = [nn.BatchNorm1d(shape[0])] if len(picks) == 1 else []
        super().__init__(*layers, pool, *norm, *rest)


def picked_units(unit: int, units: int, depth: int) -> list[int]:
    """Numbers of the units, counted from 0, that a head of this depth after a unit is made like."""
    left = units - 1 - unit
    if depth >= left:
        return [*range(unit + 1, units)]
    return [round(unit + left * i / depth) for i in range(1, depth + 1)]


def tapered_depth(depth: int, unit: int, units: int, taper: float) -> int:
    """Depth of the head after a unit, counted from 0, of so many; 0 stays 0."""
    share = min(1.0, unit / max(1, units - depth - 2))
    return min(depth, max(1, round(depth * (1 - taper * share) + taper * share)))
