"""``audit``: how local a method's learning is, measured on its own training steps.

Levels, from what one block's update may depend on:

    A     its input, labels, its own parameters: no later block's anything
    B     the values of later blocks' parameters, too, but no gradient crosses a boundary
    C(r)  gradients cross at most r boundaries between blocks
    D     global: the last loss reaches the first block (so does that of a single block)

Nothing is taken from what a method says of itself. Lightning trains copies of it for some steps on random images of the
data's shape, and what comes out is compared bit for bit:

    reach       whose loss sends a gradient to whose parameters, by hooks on every parameter
    influence   block j's parameters are replaced by others: after which step are block k's not what they were?
    delay       block j is handed noise: are those of the blocks before it?
    sides       labels, images (with unchanged input of a block), the other images of the batch: what does it read?
    depth       layers with weights on the longest way that a gradient goes, heads included
"""

import copy
import json as json_format
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from experiments.measure.observed import BATCHES, IMAGES, entry, observed
from experiments.measure.turns import threads
from experiments.run import tables
from losses.processes import alone
from models.local_learning import LocalLearning
from models.method import Method


@dataclass(frozen=True)
class Audit:
    """How local a method's learning is.

    Attributes:
        level: ``A``, ``B``, ``C(r)`` or ``D``.
        parts: names of blocks, and of a final head: rows and columns of what follows.
        reach: row k: which parts get a gradient from the loss of part k.
        influence: row j, column k: after which step part k is another if part j began with other parameters; 0: never.
        lock_step: names of the parts that learn something else if a later one is handed noise: they cannot run ahead.
        labels: names of the parts that learn something else from other labels.
        images: names of the parts behind the first that read the images beside what they are handed on.
        batch: names of the parts whose gradient of a batch is not the mean of that of its halves, BatchNorm left aside.
        gradient_depth: layers with weights on the longest way of a gradient.
    """

    level: str
    parts: list[str]
    reach: list[list[bool]]
    influence: list[list[int]]
    lock_step: list[str]
    labels: list[str]
    images: list[str]
    batch: list[str]
    gradient_depth: int


def audit(model: LocalLearning, data: ImageDataModule, steps: int = BATCHES) -> Audit:
    """Measure how local a method's learning is, in this process alone; model and data are left as they are.

    Args:
        model: the method.
        data: whose shape, classes and views the random images have.
        steps: of a training that is compared with another.
    """
    with isolate_rng(), alone(), threads(1):  # batches are small
        return _Auditor(model, data, steps).audit()


def fresh_copy(method: Method) -> Method | None:
    """A copy of a method that has not learned yet, for its audit later; None of one that cannot be copied."""
    try:
        return copy.deepcopy(method)
    except Exception:  # of whatever kind: the method may be anybody's, and its run shall go on
        return None


def locality(method: Method | None, data: ImageDataModule) -> dict[str, Any]:
    """Level of locality, what a block reads beside its input, and gradient depth, for the summary of a run.

    The level is None of a method without backward passes, and of one that cannot be audited: nothing is claimed of it,
    and its training is not stopped.
    """
    if not isinstance(method, LocalLearning):
        return {"level": None}
    try:
        found = audit(method, data, steps=2)
    except Exception as fault:  # of whatever kind: the method may be anybody's
        return {"level": None, "why_no_level": f"{type(fault).__name__}: {fault}"}
    sides = {"labels": found.labels, "images": found.images, "batches": found.batch, "later blocks": found.lock_step}
    reads = [what for what, parts in sides.items() if parts]
    return {"level": found.level, "reads": reads, "gradient_depth": found.gradient_depth}


def show_audit(result: Audit, json: bool, title: str) -> None:
    """Print an audit as tables, or as JSON."""
    if json:
        print(json_format.dumps(asdict(result), indent=2))
        return
    rows = [
        [
            name,
            ", ".join(other for other, there in zip(result.parts, result.reach[k], strict=True) if there),
            *("–" if step == 0 else str(step) for step in (row[k] for row in result.influence)),
        ]
        for k, name in enumerate(result.parts)
    ]
    headings = ["", "its loss reaches", *(f"{name} changed" for name in result.parts)]
    tables.show(headings, rows, words=headings[:2], title=f"{title}\nStep after which a block is another, if …")
    print(f"level           {result.level}: {_MEANING[result.level[0]]}")
    for what, parts in (
        ("reads labels", result.labels),
        ("reads images", result.images),
        ("reads batches", result.batch),
        ("in lock-step", result.lock_step),
    ):
        whose = ", ".join(parts) if parts else "none"
        print(f"{what:<15} {'all' if parts == result.parts and len(parts) > 1 else whose}")
    print(f"gradient depth  {result.gradient_depth} layers with weights")


_MEANING = {
    "A": "a block learns from what it is handed on, labels and its own parameters",
    "B": "values of later blocks' parameters come in, no gradient crosses a boundary",
    "C": "gradients cross so many boundaries between blocks",
    "D": "the last loss reaches the first block",
}


class _Auditor:
    """Trains copies of a model, each with one thing changed, and compares what comes out."""

    def __init__(self, model: LocalLearning, data: ImageDataModule, steps: int) -> None:
        self.names, self.parts, self.blocks = model.part_names, range(model.schedule.parts), model.num_blocks
        self.steps, self.train = steps, partial(observed, model, data)
        self.base = self.train(steps)

    def audit(self) -> Audit:
        reach, influence = self.base.reach, [*map(self.influence_of, self.parts)]
        level = level_of(reach, influence, self.blocks)
        return Audit(
            level=level,
            parts=self.names,
            reach=reach,
            influence=influence,
            lock_step=self.named({k for j in self.parts[1:] for k in self.changed_by_noise(j) if k < j}),
            labels=self.named(self.that_read(_other_labels, level)),
            images=self.named(self.that_read(_other_images, level) - {0}) if level in ("A", "B") else [],
            batch=self.named(self.that_read_the_batch()),
            gradient_depth=self.base.depth,
        )

    def named(self, parts: set[int]) -> list[str]:
        return [self.names[k] for k in sorted(parts)]

    def influence_of(self, j: int) -> list[int]:
        """Of every part, after which step it is not what it was, if part j began with other parameters; 0: never."""
        other = self.train(self.steps, prepare=lambda model: _redraw(model.part_modules(j)))
        steps = [_different(a, b) for a, b in zip(self.base.states, other.states, strict=True)]
        return [next((step for step, parts in enumerate(steps, start=1) if k in parts), 0) for k in self.parts]

    def changed_by_noise(self, j: int) -> set[int]:
        """Parts that learn something else if part j is handed noise."""
        with_noise = self.train(self.steps, prepare=lambda model: entry(model, j).register_forward_pre_hook(_noisy))
        return _different(self.base.states[-1], with_noise.states[-1])

    def that_read(self, change: Callable[[Batch], Batch], level: str) -> set[int]:
        """Parts that learn something else from other batches, though they are handed on the same.

        Where gradients cross boundaries that cannot be: there the first step has to tell.
        """
        if level not in ("A", "B"):
            return _different(self.base.states[0], self.train(1, change=change).states[0])

        def replay(model: LocalLearning) -> None:
            for k in self.parts[1:]:
                entry(model, k).register_forward_pre_hook(_replayed(self.base.inputs[k]))

        return _different(self.base.states[-1], self.train(self.steps, prepare=replay, change=change).states[-1])

    def that_read_the_batch(self) -> set[int]:
        """Parts whose gradient of a batch is not the mean of those of its halves; BatchNorm does not see the batch."""
        parts = slice(None), slice(IMAGES // 2), slice(IMAGES // 2, None)
        changes = (partial(_some, some=some) for some in parts)
        whole, one, other = (self.train(1, change=change, batch_norm=False).gradients for change in changes)
        return {k for k in self.parts if not all(map(_is_mean, whole[k], one[k], other[k]))}


def level_of(reach: Sequence[Sequence[bool]], influence: Sequence[Sequence[int]], blocks: int) -> str:
    """``A``, ``B``, ``C(r)`` or ``D``: see the head of this file.

    Args:
        reach: row k, column j: whether the loss of part k sends a gradient to part j.
        influence: row j, column k: after which step part k is another if part j was; 0: never.
        blocks: K; one more part is a final head.
    """
    crossed = max((abs(k - j) for k, row in enumerate(reach) for j, there in enumerate(row) if there), default=0)
    if crossed >= blocks - 1:
        return "D"
    if crossed:
        return f"C({crossed})"
    return "B" if any(step for j, row in enumerate(influence) for step in row[:j]) else "A"


def _different(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> set[int]:
    """Parts whose parameters are not the same, bit for bit."""
    pairs = enumerate(zip(one, other, strict=True))
    return {k for k, (a, b) in pairs if not all(torch.equal(x, y) for x, y in zip(a, b, strict=True))}


def _is_mean(whole: Tensor, one: Tensor, other: Tensor) -> bool:
    return bool((whole - (one + other) / 2).norm() <= 1e-4 * whole.norm())  # float32 rounds at 1e-7


@torch.no_grad()
def _redraw(part: nn.Module) -> None:
    """Give all parameters other values, as large as they were."""
    draw = torch.Generator().manual_seed(1)
    for parameter in part.parameters():
        noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=draw)
        parameter.add_(noise * parameter.square().mean().sqrt().clamp(min=0.1))


def _noisy(module: nn.Module, args: Any) -> Any:
    draw = torch.Generator().manual_seed(2)
    return apply_to_collection(args, Tensor, lambda x: x + torch.randn(x.shape, dtype=x.dtype, generator=draw))


def _replayed(inputs: Sequence[Any]) -> Callable[[nn.Module, Any], Any]:
    calls = iter(inputs)
    return lambda module, args: next(calls, args)


def _other_labels(batch: Batch) -> Batch:
    return batch._replace(labels=batch.labels.roll(1))


def _other_images(batch: Batch) -> Batch:
    views = tuple(pair._replace(a=-pair.a, b=-pair.b) for pair in batch.views)
    return batch._replace(images=-batch.images, views=views)


def _some(batch: Batch, some: slice) -> Batch:
    views = tuple(pair._replace(a=pair.a[some], b=pair.b[some]) for pair in batch.views)
    indices, weights = (None if one is None else one[some] for one in (batch.indices, batch.weights))
    return Batch(batch.images[some], batch.labels[some], views, indices, weights)
