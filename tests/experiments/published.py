"""What papers and released code set against what a config builds, which is not only what its YAML says.

``published_settings.yaml`` has one row per source: the commands ``of`` which it holds, and their ``settings``, which
are compared with those that :func:`settings` reads off the built parts.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import Builder
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from datamodules.views.batched import translate
from datamodules.views.transforms import Views

TABLE = yaml.safe_load(Path(__file__).with_name("published_settings.yaml").read_text())["published"]


def rows_of(name: str) -> list[Mapping[str, Any]]:
    """The rows that hold for a command: a config's name with the options behind it, or a suite's with its run's."""
    return [row for row in TABLE if re.fullmatch(row["of"], name)]


def deviations(name: str, built: Mapping[str, Any]) -> list[str]:
    """What of a command's settings is not as published, in words."""
    return [f"{told} ({row['source']})" for row in rows_of(name) for told in _told(row["settings"], built)]


def _told(published: Any, built: Any, place: str = "") -> Iterator[str]:
    if isinstance(published, Mapping):
        for name, value in published.items():
            yield from _told(value, built.get(name, {}), f"{place} {name}".strip())
    elif not _equal(published, built):
        yield f"{place} is {built}, published {published}"


def _equal(published: Any, built: Any) -> bool:
    if isinstance(published, list):
        return len(published) == len(built) and all(map(_equal, published, built))
    return built == (pytest.approx(published, rel=1e-4, abs=1e-9) if type(published) is float else published)


def settings(builder: Builder) -> dict[str, Any]:
    """The settings of a training in the field's terms, as they are in its parts."""
    model, data, trainer = builder.model, builder.datamodule, builder.trainer
    optimizers, schedulers = builder.optimization
    by_epoch, blocks, parts = model.scheduler_interval == "epoch", model.num_blocks, model.schedule.parts
    return {
        "epochs": trainer.max_epochs,
        "batch": data.batch_size * trainer.world_size,
        "processes": trainer.world_size,
        "BatchNorm over processes": bool(getattr(trainer.strategy, "_layer_sync", None)),
        "precision": str(trainer.precision),
        "optimizer": _same([_groups(optimizer) for optimizer in optimizers[:blocks]]),
        "final optimizer": _groups(optimizers[blocks]) if parts > blocks else None,  # of a final head
        "second optimizer": _groups(optimizers[parts]) if optimizers[parts:] else None,  # if a block has several
        "third optimizer": _groups(optimizers[2 * parts]) if optimizers[2 * parts :] else None,
        "rate in epoch": _same([_rates(one, trainer.max_epochs) for one in schedulers[:blocks]]) if by_epoch else None,
        "second rate in epoch": _rates(schedulers[parts], trainer.max_epochs) if schedulers[parts:] else None,
        "third rate in epoch": _rates(schedulers[2 * parts], trainer.max_epochs) if schedulers[2 * parts :] else None,
        "rate at step": None if by_epoch else _rates_at_step(schedulers, model.schedule.own_rates),
        "data": _plain(data) | {"mean": data.mean, "std": data.std},
        "views": _views(data.views, data.image_shape[1]) if data.views and data.views.batched else None,
        "model": _plain(model),
        "network": _plain(builder.options.model.init_args.network.init_args),  # first weights are not on meta
        "blocks end at": [[*dict(block.named_children())][-1] for block in model.blocks],
        "parameters": {  # in millions
            "blocks": [*map(_millions, model.blocks)],
            "trunk": _millions(model.blocks),
            "heads": _millions(model.heads[: model.num_blocks]),
            "final head": _millions(model.heads[model.num_blocks :]),
        },
        "widths": {"blocks": [*map(_widths, model.blocks)], "heads": [*map(_widths, model.heads)]},
        "loss": _plain(model.losses[0]) if hasattr(model, "losses") else None,
        "target": _plain(model.targets[0]) if hasattr(model, "targets") else None,
        "rules": dict(enumerate(map(_plain, model.rules), 1)) if hasattr(model, "rules") else None,
        "contrast": _plain(model.contrast) if hasattr(model, "contrast") else None,
        "noise": _plain(model.noise) if hasattr(model, "noise") else None,
    }


class RateAtStep:
    """Step, from 0 → rate, of a schedule that needs no earlier step to tell it: there are too many to take them all."""

    def __init__(self, scheduler: LRScheduler) -> None:
        self.scheduler = scheduler

    def get(self, step: int, _: object) -> float:
        self.scheduler.last_epoch = step - 1
        self.scheduler.step()
        return self.scheduler.get_last_lr()[0]


def _rates(scheduler: LRScheduler, epochs: int) -> dict[int, float]:
    """Epoch, from 1 → rate."""
    rates = {}
    for epoch in range(1, epochs + 1):
        rates[epoch] = scheduler.get_last_lr()[0]
        scheduler.step()
    return rates


def _groups(optimizer: Optimizer) -> dict[str, Any]:
    """Its class and options; ``vectors`` are those of a second group of parameters."""
    options, *others = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {"class": type(optimizer).__name__, **options, "vectors": others[0] if others else None}


def _rates_at_step(schedulers: list[LRScheduler], own: bool) -> Any:
    """Of the schedule of all blocks, or of each block's own, by its number from 1."""
    return dict(enumerate(map(RateAtStep, schedulers), 1)) if own else RateAtStep(schedulers[0])


def _same(of_each_block: list[Any]) -> Any:
    """What all blocks have, or, if they differ, what each has, by its number from 1."""
    if all(one == of_each_block[0] for one in of_each_block):
        return of_each_block[0]
    return dict(enumerate(of_each_block, 1))


def _plain(thing: object) -> dict[str, Any]:
    """Those attributes of an object that are values."""
    values = {name: asdict(value) if is_dataclass(value) else value for name, value in vars(thing).items()}
    kinds = int | float | str | dict | list | tuple | None
    return {name: value for name, value in values.items() if isinstance(value, kinds)}


def _views(views: Views, side: int) -> dict[str, dict[str, Any]]:
    """The random changes of view a and view b: their order, and their strengths and probabilities."""
    found = {}
    for name, transform in zip("ab", views.pair_transform(side).transforms, strict=True):
        changes = {type(step).__name__: asdict(step) for step in translate(transform)}
        found[name] = {"order": [*changes], **changes}
    return found


def _millions(part: nn.Module) -> float:
    return round(sum(p.numel() for p in part.parameters()) / 1e6, 3)


def _widths(part: nn.Module) -> list[int]:
    """Channels or units that a part reads, then those that each of its layers with weights makes."""
    layers = [layer for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    shapes = [layer.weight.shape[:2] for layer in layers]
    return [shapes[0][1], *(out for out, _ in shapes)] if shapes else []
