"""``bench``: measured speed and memory of a method against backpropagation of the same network.

Everything is measured in one process, in turns, so that a noisy machine disturbs all alike; results
are medians over the repetitions. One repetition trains ``steps`` batches through Lightning, loader,
augmentation and logging included, and times them after the first two.
"""

import copy
import json as json_format
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isqrt
from typing import Any

import lightning.pytorch as L
import torch

from datamodules.base import ImageDataModule
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.cost import network_cost
from experiments.measure.turns import in_turns, median_ratio
from experiments.measure.workbench import Workbench, loader_speed
from experiments.measure.yardstick import end_to_end
from experiments.run import tables
from losses.errors import UsageError
from models.local_learning import LocalLearning


@dataclass
class Speed:
    """What was measured of one way to train.

    Attributes:
        images_per_second: from the median step.
        step_seconds: median over the repetitions of the mean step.
        peak_activation_bytes: most bytes held for the backward pass at one time in a step.
    """

    images_per_second: float
    step_seconds: float
    peak_activation_bytes: int


@dataclass
class Bench(Speed):
    """All results of a bench run: the method's own speed, and what it is compared with.

    Attributes:
        backprop: of plain backpropagation of the same network.
        checkpointing: of backpropagation with gradient checkpointing, at the number of segments
            with the lowest peak.
        checkpointing_segments: that number.
        accumulation: of backpropagation in micro-batches that fit into the method's peak, as many as make a batch.
        micro_batch: images of one.
        plain_loop: the method's own steps in a bare Python loop on one ready batch: no Lightning,
            no loader, no logging.
        ratios: the method over backpropagation (``step_over_backprop``, ``memory_over_backprop``),
            checkpointing and accumulation over backpropagation, ``step_over_prediction``: the step over what its
            MACs predict from backpropagation's step, and ``lightning_overhead``: the step over the
            plain loop's, minus 1. Ratios of times are medians of the repetitions' own ratios.
        loader: images/s of loading and augmentation alone, on one thread.
        settings: network, batch size, threads, precision, machine and allocator.
    """

    backprop: Speed
    checkpointing: Speed
    checkpointing_segments: int
    accumulation: Speed
    micro_batch: int
    plain_loop: Speed
    ratios: dict[str, float]
    loader: dict[str, float]
    settings: dict[str, Any]


def bench(model: LocalLearning, data: ImageDataModule, trainer: L.Trainer, steps: int, repetitions: int) -> Bench:
    """Measure a method against backpropagation, against gradient checkpointing, and against accumulation.

    Args:
        model: the method.
        data: gives image shape, batch size and augmentation.
        trainer: gives device and precision.
        steps: training steps per repetition, above the warm-up.
        repetitions: alternating repetitions of each contender.

    Raises:
        UsageError: the blocks learn one after the other.
    """
    require_all_at_once(model)
    place = Workbench(data, trainer, steps)
    segments = _leanest_segments(model, place)
    contenders = {"checkpointing": end_to_end(model, segments), "backprop": end_to_end(model), "method": model}
    peaks = {name: place.peak_bytes(contender) for name, contender in contenders.items()}
    measurements: dict[str, Callable[[], float]] = {
        name: partial(place.step_seconds, contender) for name, contender in contenders.items()
    }
    micro_batch, peaks["accumulation"], measurements["accumulation"] = _accumulation(model, data, trainer, steps, peaks)
    seconds = in_turns(measurements | {"plain_loop": partial(place.plain_step_seconds, model)}, repetitions)

    def speed(name: str) -> Speed:
        median = statistics.median(seconds[name])
        return Speed(data.batch_size / median, median, peaks.get(name, peaks["method"]))

    return Bench(
        **asdict(speed("method")),
        backprop=speed("backprop"),
        checkpointing=speed("checkpointing"),
        checkpointing_segments=segments,
        accumulation=speed("accumulation"),
        micro_batch=micro_batch,
        plain_loop=speed("plain_loop"),
        ratios=_ratios(seconds, peaks, network_cost(model, data.batch_size, "plain").predicted_step_ratio),
        loader={"images_per_second_one_core": loader_speed(place.batches)},
        settings=settings_of(model, data, trainer) | {"steps": steps, "repetitions": repetitions},
    )


def require_all_at_once(model: LocalLearning) -> None:
    """See that there is a step in which all blocks learn.

    Raises:
        UsageError: they do so one after the other.
    """
    if model.schedule.lengths:
        raise UsageError(
            "bench measures a step in which all blocks learn. For blocks that learn one after the other see cost, and "
            "python -m experiments.studies.layerwise"
        )


def settings_of(model: LocalLearning, data: ImageDataModule, trainer: L.Trainer) -> dict[str, Any]:
    """What was measured on what."""
    device = trainer.strategy.root_device
    return {
        "network": model.network_name,
        "num_blocks": model.num_blocks,
        "num_groups": model.num_groups,
        "batch_size": data.batch_size,
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "allocator": "freed memory kept (mallopt)" if keep_freed_memory() else "the system's default allocator",
    }


def _leanest_segments(model: LocalLearning, place: Workbench) -> int:
    """The number of checkpointing segments with the lowest peak; it is near the root of the number of units."""
    units = len([*end_to_end(model).blocks[0].children()])
    candidates = range(2, min(units, 2 * isqrt(units) + 1) + 1) if units > 1 else [1]
    return min(candidates, key=lambda segments: place.peak_bytes(end_to_end(model, segments)))


def _accumulation(
    model: LocalLearning, data: ImageDataModule, trainer: L.Trainer, steps: int, peaks: Mapping[str, int]
) -> tuple[int, int, Callable[[], float]]:
    """Backpropagation in micro-batches that fit into the method's memory: images of one, its peak, a step's timer.

    Activations grow with the batch in proportion. Micro-batches are as even as they can be, of 2 images at least.
    """
    fitting = max(2, data.batch_size * peaks["method"] // peaks["backprop"])
    count = -(-data.batch_size // min(fitting, data.batch_size))
    small = copy.copy(data)
    small.batch_size = -(-data.batch_size // count)
    place, whole = Workbench(small, trainer, steps * count, warm_up=2 * count), end_to_end(model)
    whole.accumulate = count
    return small.batch_size, place.peak_bytes(whole), lambda: count * place.step_seconds(whole)


def _ratios(seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, int], predicted: float) -> dict[str, float]:
    step = median_ratio(seconds["method"], seconds["backprop"])
    return {
        "step_over_backprop": step,
        "predicted_step_over_backprop": predicted,
        "step_over_prediction": step / predicted,
        "memory_over_backprop": peaks["method"] / peaks["backprop"],
        "checkpointing_step_over_backprop": median_ratio(seconds["checkpointing"], seconds["backprop"]),
        "checkpointing_memory_over_backprop": peaks["checkpointing"] / peaks["backprop"],
        "accumulation_step_over_backprop": median_ratio(seconds["accumulation"], seconds["backprop"]),
        "accumulation_memory_over_backprop": peaks["accumulation"] / peaks["backprop"],
        "lightning_overhead": median_ratio(seconds["method"], seconds["plain_loop"]) - 1,
    }


def show_bench(result: Bench, json: bool) -> None:
    """Print the results as a table, or as JSON."""
    if json:
        print(json_format.dumps(asdict(result), indent=2))
        return
    settings, ratios = result.settings, result.ratios
    title = (
        f"{settings['network']}, K = {settings['num_blocks']}, G = {settings['num_groups']}, "
        f"batch {settings['batch_size']}, {settings['device']}, {settings['threads']} threads"
    )
    headings = ("", "images/s", "ms / step", "× backprop", "peak MiB", "× backprop")
    tables.show(headings, _rows(result), words=[""], title=title)
    print(
        f"step against its MACs   {ratios['step_over_prediction']:.3f} × the "
        f"{ratios['predicted_step_over_backprop']:.3f} that they predict\n"
        f"Lightning's own cost    {100 * ratios['lightning_overhead']:+.1f} % over the plain loop "
        "(loader, loop, logging)\n"
        f"loader alone            {result.loader['images_per_second_one_core']:,.0f} images/s on one core\n"
        f"{settings['allocator']}; medians of {settings['repetitions']} repetitions of {settings['steps']} steps, "
        "in turns." + (" Too few to trust." if settings["repetitions"] * settings["steps"] < 15 else "")
    )


def _rows(result: Bench) -> Iterator[tuple[str, ...]]:
    ratios, base = result.ratios, result.backprop
    own, checkpointing = ratios["step_over_backprop"], ratios["checkpointing_step_over_backprop"]
    count = -(-result.settings["batch_size"] // result.micro_batch)
    for name, speed, ratio in (
        ("backprop", base, 1.0),
        (f"checkpointing, {result.checkpointing_segments} segments", result.checkpointing, checkpointing),
        (
            f"accumulation, {count} × {result.micro_batch} images",
            result.accumulation,
            ratios["accumulation_step_over_backprop"],
        ),
        ("this method", result, own),
        ("this method, plain loop", result.plain_loop, own / (1 + ratios["lightning_overhead"])),
    ):
        yield (
            name,
            f"{speed.images_per_second:.0f}",
            f"{1000 * speed.step_seconds:.1f}",
            f"{ratio:.3f}",
            f"{speed.peak_activation_bytes / 2**20:.1f}",
            f"{speed.peak_activation_bytes / base.peak_activation_bytes:.3f}",
        )
