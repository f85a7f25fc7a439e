"""Trains copies of a model on random images, and sees what every part's parameters become."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import lightning.pytorch as L
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.images import MemoryImages
from experiments.measure.silent import silent_trainer
from models.local_learning import LocalLearning

IMAGES, BATCHES = 8, 4
"""Images per batch, and batches, which are the same in all trainings."""


@dataclass
class Observed:
    """What was seen of a training.

    Attributes:
        gradients: in the first step, of every part, what its optimizer was given.
        reach: row k: which parts got a gradient from the loss of part k.
        inputs: of every part, what it was called with.
        states: after every step, of every part, the parameters that learn.
        depth: layers with weights on the longest way that a gradient went.
    """

    gradients: list[list[Tensor]]
    reach: list[list[bool]]
    inputs: list[list[Any]]
    states: list[list[list[Tensor]]] = field(default_factory=list)
    depth: int = 0


class RandomSplit(ImageDataModule):
    """Random images and labels of a data set's shape, without its files; its own augmentation and views.

    Args:
        like: the data set.
        change: what to do with a batch on the device.
    """

    def __init__(self, like: ImageDataModule, change: Callable[[Batch], Batch]) -> None:
        labels = like.labels and max(like.num_classes, BATCHES * IMAGES // 2)
        super().__init__(
            batch_size=IMAGES, augment=like.augment, views=like.views, labels=labels, labelled_batch_size=IMAGES
        )
        for name in ("name", "num_classes", "image_shape", "mean", "std"):
            setattr(self, name, getattr(like, name))
        self._count, self._change = max(BATCHES * IMAGES, 4 * like.num_classes if labels else 0), change

    @override
    def setup(self, stage: str) -> None:
        if not self._splits:
            draw = torch.Generator().manual_seed(0)
            channels, height, width = self.image_shape
            shape = (self._count, height, width, channels)
            images = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
            split = MemoryImages(images, torch.arange(self._count) % self.num_classes)
            self._splits = {"train": split, "known": split, "val": split}
        super().setup(stage)

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self._change(super().on_after_batch_transfer(batch, dataloader_idx))


def observed(
    model: LocalLearning,
    data: ImageDataModule,
    steps: int,
    prepare: Callable[[LocalLearning], object] = lambda model: None,
    change: Callable[[Batch], Batch] = lambda batch: batch,
    batch_norm: bool = True,
) -> Observed:
    """Train a copy of a model for some steps; blocks that learn one after the other have so many each.

    Args:
        model: the method.
        data: whose shape, classes and views the random images have.
        steps: how many, at most ``BATCHES``.
        prepare: what to change in the copy before.
        change: what to change in every batch.
        batch_norm: whether BatchNorm takes the statistics of the batch.
    """
    model = _copied(model)
    prepare(model)
    spy = _Spy(model, batch_norm)
    epochs = model.schedule.epochs or 1
    trainer = silent_trainer(accelerator="cpu", max_epochs=epochs, limit_train_batches=steps, callbacks=[spy])
    trainer.fit(model, datamodule=RandomSplit(data, change))
    return spy.observed


def entry(model: LocalLearning, part: int) -> nn.Module:
    """What reads what is handed on to a part: the block, or the final head."""
    return [*model.blocks, *model.heads[len(model.blocks) :]][part]


def _copied(model: LocalLearning) -> LocalLearning:
    """A copy to experiment with: on the CPU, without dropout, one epoch for each block."""
    copied = copy.deepcopy(model, {id(model._trainer): None}).cpu()
    copied.schedule = replace(model.schedule, epochs_per_block=1 if model.schedule.lengths else None)
    copied.accumulate = 1
    for module in copied.modules():
        module._compiled_call_impl = None  # of torch.compile
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    return copied


class _Spy(L.Callback):
    """Sees what a training does, step by step."""

    def __init__(self, model: LocalLearning, batch_norm: bool) -> None:
        parts = range(model.schedule.parts)
        self._batch_norm, self._sender = batch_norm, parts[-1]  # what is sent back otherwise counts as the last's
        self._parameters = [[p for p in model.part_modules(k).parameters() if p.requires_grad] for k in parts]
        self.observed = Observed([[] for _ in parts], [[False] * len(parts) for _ in parts], [[] for _ in parts])
        self._before: dict[Tensor, Tensor] = {}
        self._arrived: dict[int, int] = {}  # memory of what a gradient has arrived at → layers on its way
        for k in parts:
            entry(model, k).register_forward_pre_hook(self._keep_input(k))
            for parameter in self._parameters[k]:
                parameter.register_post_accumulate_grad_hook(self._note_reach(k))
        self._backward_block = model.backward_block
        model.backward_block = self._announced_backward  # type: ignore[method-assign,assignment]  # of this copy
        self._send = torch.autograd.backward

    def _announced_backward(self, k: int, loss: Tensor, **options: Any) -> None:
        self._sender = k
        self._backward_block(k, loss, **options)

    def _measured_send(self, tensors: Any, *args: Any, **options: Any) -> None:
        """torch.autograd.backward; what goes back from where a gradient has arrived is a continuation of its way."""
        arrived: dict[int, int] = {}
        for root in [tensors] if isinstance(tensors, Tensor) else tensors:
            depths = _depths(root.grad_fn) if root.grad_fn else {}
            way = max(depths.values(), default=0)
            if root.dim():  # no loss, with which a way begins
                way += self._arrived.get(_memory(root), 0)
            leaves = [node.variable for node in depths if hasattr(node, "variable")]
            arrived |= dict.fromkeys(map(_memory, leaves), way)
            self.observed.depth = max(self.observed.depth, way)
        self._arrived |= arrived
        self._send(tensors, *args, **options)

    def _keep_input(self, k: int) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            self.observed.inputs[k].append(apply_to_collection(args, Tensor, lambda x: x.detach().clone()))

        return hook

    def _note_reach(self, j: int) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            before = self._before.get(parameter, torch.zeros(()))
            self.observed.reach[self._sender][j] |= bool((parameter.grad != before).any())
            self._before[parameter] = parameter.grad.clone()

        return hook

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.autograd.backward = self._measured_send  # all ways back go through it

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._arrived.clear()
        if not self._batch_norm:
            for module in pl_module.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for k, parameters in enumerate(self._parameters):
            own = [p for p in parameters if id(p) in held]
            if not self.observed.states and own and not self.observed.gradients[k]:
                self.observed.gradients[k] = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in own]
            for parameter in own:
                self._before.pop(parameter, None)

    @override
    def on_train_batch_end(self, *step: Any) -> None:
        self.observed.states.append([[p.detach().clone() for p in part] for part in self._parameters])

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        torch.autograd.backward = self._send

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        torch.autograd.backward = self._send


def weight_layers(root: Node) -> int:
    """Layers with weights (parameters of two and more dimensions) on the longest way back from a node of a graph."""
    return _depths(root)[root]


def _depths(root: Node) -> dict[Node, int]:
    """Every node behind one, and that one → layers with weights on its longest way back."""
    depths: dict[Node, int] = {}
    open_nodes = [root]
    while open_nodes:
        node = open_nodes[-1]
        behind = [one for one, _ in node.next_functions if one is not None]
        if missing := [one for one in behind if one not in depths]:
            open_nodes += missing
            continue
        own = len(behind) > 1 and any(map(_leads_to_weights, behind))
        depths[open_nodes.pop()] = own + max((depths[one] for one in behind), default=0)
    return depths


def _memory(tensor: Tensor) -> int:
    """Where its values are: the same of a tensor and of what was detached from it."""
    return tensor.untyped_storage().data_ptr()


def _leads_to_weights(node: Node | None) -> bool:
    """Whether a node is a weight, or its cast, transposed or reshaped form."""
    while node is not None and not hasattr(node, "variable"):
        behind = [one for one, _ in node.next_functions if one is not None]
        node = behind[0] if len(behind) == 1 else None
    return node is not None and node.variable.dim() > 1
