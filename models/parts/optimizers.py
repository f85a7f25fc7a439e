"""Optimizers with the parameter groups of the published recipes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightly.utils.lars import LARS
from torch import Tensor, nn
from torch.optim import SGD, Adam
from typing_extensions import override

from ranges import NonNegativeFloat, PositiveFloat


class BlockLARS(LARS):
    """LARS as Barlow Twins uses it: weight decay and trust ratio for weights, neither for biases and BatchNorm.

    lightly's LARS, with the two groups made by the number of dimensions of a tensor (it applies no trust ratio to a
    group without weight decay). You et al., 2017; the rule and the groups of Siddiqui et al., 2024.

    Args:
        params: what to train.
        lr: learning rate.
        vector_lr: learning rate of tensors with one dimension, as a share of ``lr``.
        momentum: factor of the momentum buffer.
        weight_decay: of tensors with several dimensions; above 0.
        trust_coefficient: η.

    Raises:
        ValueError: no weight decay, which would switch the trust ratio off.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: NonNegativeFloat,
        vector_lr: NonNegativeFloat = 1.0,
        momentum: NonNegativeFloat = 0.9,
        weight_decay: PositiveFloat = 1e-6,
        trust_coefficient: PositiveFloat = 0.001,
    ) -> None:
        if weight_decay <= 0:
            raise ValueError("LARS needs a weight_decay above 0: lightly's leaves the trust ratio out where it is 0.")
        params = list(params)
        groups = [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0, "lr": lr * vector_lr},
        ]
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, lr=lr, momentum=momentum, trust_coefficient=trust_coefficient)


def by_layer(params: Iterable[nn.Parameter], rates: Sequence[float]) -> list[dict[str, Any]]:
    """Parameter groups of the layers, each with its own learning rate. A weight with several dimensions begins one.

    Raises:
        ValueError: there are several layers, and not as many rates.
    """
    layers: list[list[nn.Parameter]] = []
    for parameter in params:
        if parameter.ndim > 1 or not layers:
            layers.append([])
        layers[-1].append(parameter)
    if len(layers) > 1 and len(layers) != len(rates):
        raise ValueError(f"rates must be the learning rates of all {len(layers)} layers, not {list(rates)}")
    return [{"params": layer, "lr": rate} for layer, rate in zip(layers, rates, strict=False)]


class LayerSGD(SGD):
    """SGD with a learning rate for each layer.

    Args:
        params: what to train, layer by layer, a weight before its bias.
        rates: learning rate of each layer.
        momentum: factor of the momentum buffer.
        weight_decay: of all parameters.

    Raises:
        ValueError: another number of rates than of layers.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        rates: list[PositiveFloat],
        momentum: NonNegativeFloat = 0.0,
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(by_layer(params, rates), lr=rates[0], momentum=momentum, weight_decay=weight_decay)


class LayerAdam(Adam):
    """Adam with a learning rate for each layer.

    Args:
        params: what to train, layer by layer, a weight before its bias.
        rates: learning rate of each layer.

    Raises:
        ValueError: another number of rates than of layers.
    """

    def __init__(self, params: Iterable[nn.Parameter], rates: list[PositiveFloat]) -> None:
        super().__init__(by_layer(params, rates), lr=rates[0])


def by_role(params: Iterable[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """Parameters that learn by their role: ``filters``, ``matrices``, ``vectors`` (biases, scales), ``shifts``.

    Filters have more than two dimensions. Shifts are vectors behind weights that do not learn: the bias of a whitening
    convolution.
    """
    roles: dict[str, list[nn.Parameter]] = {"filters": [], "matrices": [], "vectors": [], "shifts": []}
    behind_fixed = False
    for parameter in params:
        if parameter.ndim > 1:
            behind_fixed = not parameter.requires_grad
        if parameter.requires_grad:
            vector = "shifts" if behind_fixed else "vectors"
            role = vector if parameter.ndim <= 1 else "matrices" if parameter.ndim == 2 else "filters"
            roles[role].append(parameter)
    return roles


def _group(role: str, params: Sequence[nn.Parameter], lr: float, shrinkage: float) -> dict[str, Any]:
    return {"params": params, "role": role, "lr": lr, "weight_decay": shrinkage / lr if lr else 0.0}


class RoleSGD(SGD):
    """SGD with Nesterov momentum whose learning rates differ by the role of a parameter: airbench's first recipe.

    K. Jordan, arXiv 2404.00498, 2024. Published for a summed loss and 1,024 images: 11.5 / (1 + 1/(1 − 0.85)) per
    1,024, which for the mean loss here is 1.5, and 64 times that for the biases of BatchNorm.

    Args:
        params: what to train.
        weight_lr: learning rate of weights, and of the biases behind weights that do not learn.
        vector_lr: learning rate of all other tensors with one dimension.
        nesterov_momentum: factor of the momentum buffer.
        shrinkage: weight decay times learning rate, the same for all: the share that a step takes off at full rate,
            beside what momentum adds.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        weight_lr: PositiveFloat = 1.5,
        vector_lr: PositiveFloat = 96.0,
        nesterov_momentum: NonNegativeFloat = 0.85,
        shrinkage: NonNegativeFloat = 0.001995,
    ) -> None:
        rates = {"filters": weight_lr, "matrices": weight_lr, "vectors": vector_lr, "shifts": weight_lr}
        groups = [_group(role, some, rates[role], shrinkage) for role, some in by_role(params).items() if some]
        super().__init__(groups, lr=weight_lr, momentum=nesterov_momentum, nesterov=nesterov_momentum > 0)


class Muon(SGD):
    """Muon for convolutions, SGD with Nesterov momentum for all else: airbench's second recipe.

    K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, in the form of the released
    ``airbench94_muon.py``. Before each step the filters W of a layer, a tensor of C filters, are scaled to the norm √C;
    the step is W ← W − lr · O, O nearly the orthogonal matrix nearest to the momentum, as C × rest: three steps of
    a Newton–Schulz iteration. So it depends neither on the scale of the gradient nor on that of the weights.

    Published rates of all else are for the summed loss of 2,000 images; those here, for the mean loss, are 2,000 times
    as large. The script's classifier has weights of standard deviation 1 and divides logits by 256, which is the same
    as dividing by 9, as ``Airbench`` does, with weights 9/256 times as large and a rate (9/256)² times as large.

    Args:
        params: what to train.
        filter_lr: learning rate of filters.
        matrix_lr: learning rate of tensors with two dimensions: the classifier.
        vector_lr: learning rate of tensors with one dimension: biases.
        filter_momentum: of the filters' gradients.
        other_momentum: of all other gradients.
        shrinkage: weight decay times learning rate of all but filters: the share that a step takes off at full rate.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        filter_lr: PositiveFloat = 0.24,
        matrix_lr: PositiveFloat = 1.656,
        vector_lr: PositiveFloat = 106.0,
        filter_momentum: NonNegativeFloat = 0.6,
        other_momentum: NonNegativeFloat = 0.85,
        shrinkage: NonNegativeFloat = 0.004,
    ) -> None:
        rates = {"filters": filter_lr, "matrices": matrix_lr, "vectors": vector_lr, "shifts": vector_lr}
        groups = [
            _group(role, some, rates[role], shrinkage)
            | ({"momentum": filter_momentum, "weight_decay": 0.0} if role == "filters" else {})
            for role, some in by_role(params).items()
            if some
        ]
        super().__init__(groups, lr=filter_lr, momentum=other_momentum, nesterov=other_momentum > 0)

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Filters by Muon, all else as SGD does it, which leaves alone what has no gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for weight in group["params"] if group["role"] == "filters" else ():
                if weight.grad is not None:
                    self._step_filters(weight, weight.grad, group["lr"], group["momentum"])
                    weight.grad = None
        super().step()
        return loss

    def _step_filters(self, weight: nn.Parameter, gradient: Tensor, lr: float, momentum: float) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        ahead = gradient.add(buffer, alpha=momentum)  # Nesterov's
        weight.mul_(weight.shape[0] ** 0.5 / weight.norm())
        weight.sub_(orthogonalised(ahead.flatten(1)).view_as(weight), alpha=lr)


def orthogonalised(matrix: Tensor, steps: int = 3) -> Tensor:
    """Nearly the orthogonal matrix nearest to one ``(R, C)``: singular values come near 1, singular vectors stay.

    Newton–Schulz steps X ← a X + (b A + c A²) X, A = X Xᵀ, with the coefficients of Muon.

    Args:
        matrix: the matrix.
        steps: how many.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
