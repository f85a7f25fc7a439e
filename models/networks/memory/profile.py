"""What a piece of network costs, found by running it on the meta device: no data, no arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from models.networks.layers.grouped import GroupLinear
from models.networks.layers.pooling import GlobalAveragePool
from models.networks.memory.recomputed import Recomputed
from models.networks.memory.saved_tensors import SavedTensorMeter

Convention = Literal["published", "plain"]
"""How MACs are counted. ``plain``: multiply-accumulates of convolutions and matrix products.
``published``: those, plus what the GN-DGL paper adds (section 10 of its method sheet): 2 per
BatchNorm output element, 1 per ReLU output, pooling input and linear output element."""

_POOLING = (GlobalAveragePool, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d)


@dataclass(frozen=True)
class Cost:
    """Cost of one module in the forward pass of a training step.

    Attributes:
        parameters: number of parameters.
        forward_macs: multiply-accumulates for one image.
        fixed_macs: of these, those of weights that do not learn (buffers), which get no gradient.
        saved: storage → bytes that autograd keeps for the whole batch; storages are the same in
            costs that come from one :func:`profile` call, so unions do not count twice.
        recomputed: bytes that its backward pass holds above those, where it computes some of them again.
        output_shape: shape of one sample's output (of the last one, if there are several).
        output_bytes: bytes of the output for the whole batch.
    """

    parameters: int
    forward_macs: int
    fixed_macs: int
    saved: Mapping[int, int]
    recomputed: int
    output_shape: tuple[int, ...]
    output_bytes: int


def activation_bytes(costs: Sequence[Cost]) -> int:
    """The most bytes that are held for backward when these modules run one after the other, and back."""
    storages: dict[int, int] = {}
    peak = 0
    for cost in costs:
        storages |= cost.saved
        peak = max(peak, sum(storages.values()) + cost.recomputed)  # what comes later is freed by then
    return peak


def profile(
    units: Sequence[nn.Module],
    image_shape: tuple[int, ...],
    batch_size: int = 2,
    make_head: Callable[[int, tuple[int, ...]], nn.Module | None] = lambda index, shape: None,
    convention: Convention = "published",
) -> list[tuple[Cost, Cost | None]]:
    """Cost of every unit of a chain and of the head that would sit on it.

    Args:
        units: modules applied one after the other.
        image_shape: ``(C, H, W)`` of an input image.
        batch_size: images per batch, for the byte counts; at least 2, because BatchNorm on single
            values needs it.
        make_head: (unit index, feature shape) → the head after that unit, or None for no head.
        convention: what counts as a MAC.

    Returns:
        One (unit cost, head cost) per unit.
    """
    kinds = [p.dtype for unit in units for p in unit.parameters()]
    x = torch.empty(batch_size, *image_shape, dtype=kinds[0] if kinds else None, device="meta")
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)  # as data modules give them
    costs = []
    graphs = []  # keeps every saved tensor alive, so that no storage identity is used twice
    for index, unit in enumerate(units):
        y, cost = _run(unit, x, batch_size, convention)
        head = make_head(index, cost.output_shape)
        out, head_cost = (None, None) if head is None else _run(head, y, batch_size, convention)
        graphs.append((y, out))
        costs.append((cost, head_cost))
        x = y
    return costs


def _run(module: nn.Module, x: Any, batch_size: int, convention: Convention) -> tuple[Any, Cost]:
    state = on_meta(module)
    meter = SavedTensorMeter(exclude=state.values())
    elements: list[int] = []
    count = register_module_forward_hook(lambda *call: elements.append(_elementwise_operations(*call)))
    with meter, _MacCounter() as counter, count:
        outputs = functional_call(module, state, (x,))  # all of them stay alive, and with them what they keep
    y = outputs[-1] if isinstance(outputs, tuple) else outputs
    operations = counter.macs + (sum(elements) if convention == "published" else 0)
    cost = Cost(
        parameters=sum(p.numel() for p in module.parameters()),
        forward_macs=operations // batch_size,
        fixed_macs=counter.fixed // batch_size,
        saved=dict(meter.alive),
        recomputed=_recomputed_bytes(module, x),
        output_shape=tuple(y.shape[1:]),
        output_bytes=y.untyped_storage().nbytes(),
    )
    return outputs, cost


def _elementwise_operations(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    """What the published convention counts of a layer beside convolutions and matrix products."""
    if isinstance(layer, _BatchNorm):
        return 2 * output.numel()
    if isinstance(layer, nn.ReLU | nn.LeakyReLU):
        return output.numel()
    if isinstance(layer, nn.Linear | GroupLinear) and layer.bias is not None:
        return output.numel()
    return inputs[0].numel() if isinstance(layer, _POOLING) else 0


class _MacCounter(TorchDispatchMode):
    """Counts the multiply-accumulates of convolutions and matrix products that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = self.fixed = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = _AT_ONCE.get(func, func)(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            macs = count(*args, **kwargs, out_val=out) // 2
            weight = args[2 if func._overloadpacket is torch.ops.aten.addmm else 1]
            self.macs += macs
            self.fixed += 0 if weight.requires_grad else macs
        return out


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *numbers: float) -> Any:
    if not training or x.dtype not in (torch.float32, torch.float64):
        return torch.ops.aten.native_batch_norm.default(x, weight, bias, mean, var, training, *numbers)
    return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


_AT_ONCE: Mapping[Any, Callable[..., Any]] = {
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten.relu.default: torch.empty_like,
    torch.ops.aten.relu_.default: lambda x: x,
}
"""Operation → its outputs on the meta device; torch has these in Python there, which takes most of a profile's time."""


def _recomputed_bytes(module: nn.Module, x: Tensor) -> int:
    if not any(isinstance(part, Recomputed) for part in module.modules()):
        return 0
    state = on_meta(module)
    with SavedTensorMeter(exclude=state.values()) as meter:
        outputs = functional_call(module, state, (x.detach().requires_grad_(x.requires_grad),))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        saved = meter.current
        torch.autograd.backward(outputs, [torch.empty_like(y) for y in outputs])
    return meter.peak - saved


def on_meta(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers on the meta device, by name; as they are when it learns, not frozen."""
    parameters = {n: p.detach().to("meta").requires_grad_() for n, p in module.named_parameters()}
    return parameters | {n: b.to("meta") for n, b in module.named_buffers()}
