"""``cost --processes`` and ``cost --simulate``: how fast blocks and groups would train on processes of their own.

The time of every block is measured here, with its head and its update; what n processes make of it is simulated.
"""

import contextlib
import json as json_format
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from math import fsum, prod

import lightning.pytorch as L
import torch

from datamodules.base import ImageDataModule
from experiments.measure.cost import network_cost
from experiments.measure.simulator import Link, Stage, Usage, simulate
from experiments.measure.turns import in_turns
from experiments.measure.workbench import Workbench
from experiments.measure.yardstick import end_to_end
from experiments.run import tables
from losses.errors import UsageError
from models.local_learning import LocalLearning
from models.networks.cut import balanced_stops
from models.networks.groups.own import OwnGroups, require_apart

_STEPS, _REPETITIONS = 3, 5


@dataclass(frozen=True)
class Measured:
    """What was measured of a method, and what travels; times are medians, in seconds, sizes are bytes of a batch.

    Attributes:
        block_seconds: number of processes that share the groups of a block → a step of each block with its heads, in
            one of them.
        final_seconds: of the final head; 0 if there is none.
        one_process_seconds: of a whole step in one process, while the others rest.
        backprop_seconds: the same of the network trained end to end.
        handed_on: what each block hands on, and what losses read besides.
        predictions: of all groups of a block.
        groups: G.
        processes: how many measured at once.
        threads: of each.
    """

    block_seconds: dict[int, list[float]]
    final_seconds: float
    one_process_seconds: float
    backprop_seconds: float
    handed_on: list[float]
    predictions: float
    groups: int
    processes: int
    threads: int


@dataclass(frozen=True)
class Prediction:
    """How so many processes would train.

    Attributes:
        processes: how many.
        blocks: of each stage the numbers of its first and last block.
        width: processes of a stage, which share the groups of its blocks.
        step_seconds: from one batch to the next.
        fill_seconds: until the last stage begins with the first batch.
        over_one_process: speed-up over one process.
        over_backprop: speed-up over backpropagation in one process.
        usage: where the time of each stage goes.
    """

    processes: int
    blocks: list[tuple[int, int]]
    width: int
    step_seconds: float
    fill_seconds: float
    over_one_process: float
    over_backprop: float
    usage: list[Usage]


def foresee(
    model: LocalLearning, data: ImageDataModule, trainer: L.Trainer, processes: int | None, link: Link, jitter: float
) -> tuple[Measured, list[Prediction]]:
    """Measure, and predict for so many processes; None: for 1, 2, 4 … up to one for every node.

    Raises:
        UsageError: they cannot share the blocks and groups, or gain nothing by it.
    """
    counts = [processes] if processes else doublings(model.num_blocks, model.num_groups)
    widths = {width for count in counts for _, width in shapes(model.num_blocks, model.num_groups, count)}
    measured = measure(model, data, trainer, sorted(widths))
    return measured, [predict(measured, count, link, jitter) for count in counts]


def measure(
    model: LocalLearning,
    data: ImageDataModule,
    trainer: L.Trainer,
    widths: Sequence[int] = (1,),
    repetitions: int = _REPETITIONS,
) -> Measured:
    """Measure blocks in as many processes at once as the Trainer has, and whole steps in its first alone.

    Args:
        model: the method.
        data: gives image shape, batch size and augmentation; random images are used.
        trainer: gives processes, device and precision.
        widths: numbers of processes that share the groups of a block.
        repetitions: of the whole round.

    Raises:
        UsageError: blocks that do not learn at the same time, or not apart; groups that are not computed apart.
    """
    why = "learn one after the other" if model.schedule.lengths else model.why_one_place
    if why:
        raise UsageError(f"Nothing is gained by more processes for the blocks of {type(model).__name__}, which {why}.")
    launcher = trainer.strategy.launcher
    seconds = partial(_seconds, model, data, trainer, widths, repetitions)
    found = launcher.launch(seconds, trainer=trainer) if launcher else seconds()
    [one_process], [backprop] = found["one process"], found["backprop"]
    read = 4 * data.batch_size * prod(model.image_shape) if model.losses_read_images else 0
    nodes = network_cost(model, data.batch_size).nodes
    return Measured(
        block_seconds={width: found[f"{width} apart"][: model.num_blocks] for width in widths},
        final_seconds=fsum(found[f"{widths[0]} apart"][model.num_blocks :]),
        one_process_seconds=one_process,
        backprop_seconds=backprop,
        handed_on=[node.bytes_out * model.num_groups + read for node in nodes if node.group == 1],
        predictions=4 * data.batch_size * model.num_classes * model.num_groups,
        groups=model.num_groups,
        processes=trainer.world_size,
        threads=torch.get_num_threads(),
    )


def _seconds(
    model: LocalLearning, data: ImageDataModule, trainer: L.Trainer, widths: Sequence[int], repetitions: int
) -> dict[str, list[float]]:
    """Medians of what is measured in turns; only the first process knows those of one alone."""
    strategy = trainer.strategy
    strategy.setup_environment()
    place, whole = Workbench(data, trainer, _STEPS), end_to_end(model)

    def at_once(width: int) -> list[float]:
        strategy.barrier()
        with _apart(model.to(place.device), width):
            parts = torch.tensor(place.part_seconds(model), dtype=torch.float64, device=place.device)
        mean: torch.Tensor = strategy.reduce(parts, reduce_op="mean")
        return mean.tolist()

    def alone(one: LocalLearning) -> list[float]:
        strategy.barrier()
        return [place.plain_step_seconds(one) if trainer.is_global_zero else 0.0]

    contenders: dict[str, Callable[[], list[float]]] = {
        **{f"{width} apart": partial(at_once, width) for width in widths},
        "one process": partial(alone, model),
        "backprop": partial(alone, whole),
    }
    found = in_turns(contenders, repetitions)
    return {name: [statistics.median(times) for times in zip(*rows, strict=True)] for name, rows in found.items()}


@contextlib.contextmanager
def _apart(model: LocalLearning, width: int) -> Iterator[None]:
    """The groups of the first of so many processes; the others' features and predictions are made up of its own."""
    own = range(model.num_groups // width)

    def gather(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat([tensor, *[tensor.detach()] * (width - 1)], dim)

    make = partial(OwnGroups, own=own, groups=model.num_groups, gather=gather)
    pairs = [(make(block), make(heads)) for block, heads in zip(model.blocks, model.heads, strict=False) if width > 1]
    require_apart(pairs, torch.rand(2, *model.image_shape, device=next(model.parameters()).device))
    for part in chain.from_iterable(pairs):
        part.narrow()
    try:
        yield
    finally:
        for part in chain.from_iterable(pairs):
            part.widen(learned=False)


def predict(measured: Measured, processes: int, link: Link = Link(), jitter: float = 0.0) -> Prediction:
    """How so many processes would train, in the fastest of all layouts.

    The processes of a block exchange features and predictions when it has gone forward; a final head learns in all of
    the last blocks.

    Raises:
        UsageError: that many cannot share the blocks and groups.
    """
    blocks = len(measured.handed_on)
    layouts = [_predict(measured, *shape, link, jitter) for shape in shapes(blocks, measured.groups, processes)]
    return min(layouts, key=lambda one: one.step_seconds)


def shapes(blocks: int, groups: int, processes: int) -> list[tuple[int, int]]:
    """How processes can share blocks and groups: number of runs of blocks, processes that share the groups of each.

    Raises:
        UsageError: they cannot.
    """
    possible = [(depth, processes // depth) for depth in range(1, blocks + 1) if not processes % depth]
    possible = [(depth, width) for depth, width in possible if not groups % width]
    if not possible:
        raise UsageError(
            f"{processes} processes cannot share {blocks} blocks of {groups} groups: take the product of at most "
            f"{blocks} runs of blocks and a divisor of {groups}."
        )
    return possible


def doublings(blocks: int, groups: int) -> list[int]:
    """1, 2, 4 … processes, where they can share blocks and groups, and one for each of the K·G nodes."""
    widths = [width for width in range(1, groups + 1) if not groups % width]
    possible = {depth * width for depth in range(1, blocks + 1) for width in widths}
    return sorted({2**power for power in range(blocks * groups)} & possible | {blocks * groups})


def _predict(measured: Measured, depth: int, width: int, link: Link, jitter: float) -> Prediction:
    seconds = measured.block_seconds[width].copy()
    seconds[-1] += measured.final_seconds
    stops = balanced_stops(len(seconds), depth, lambda a, b: fsum(seconds[a:b]))
    runs = [range(*bounds) for bounds in pairwise([0, *stops])]
    others = (width - 1) / width
    stages = [
        Stage(
            seconds=[fsum(seconds[k] for k in run)] * width,
            bytes_out=measured.handed_on[run[-1]],
            exchanged=[others * size for k in run for size in (measured.handed_on[k], measured.predictions) if others],
        )
        for run in runs
    ]
    flow = simulate(stages, link, jitter)
    return Prediction(
        processes=depth * width,
        blocks=[(run.start + 1, run.stop) for run in runs],
        width=width,
        step_seconds=flow.step_seconds,
        fill_seconds=flow.fill_seconds,
        over_one_process=measured.one_process_seconds / flow.step_seconds,
        over_backprop=measured.backprop_seconds / flow.step_seconds,
        usage=flow.usage,
    )


# -- shown --------------------------------------------------------------------------------------


def show_prediction(measured: Measured, predictions: Sequence[Prediction], json: bool, title: str) -> None:
    """Print one prediction stage by stage, several as a row each, or all as JSON."""
    if json:
        print(json_format.dumps({"measured": asdict(measured), "predictions": [*map(asdict, predictions)]}, indent=2))
        return
    threads = f"{measured.threads} thread{'s' if measured.threads > 1 else ''}"
    places = "one process" if measured.processes == 1 else f"each of {measured.processes} processes at once"
    title = f"{title}\nBlocks measured in {places}, {threads}; what processes make of it is simulated"
    if len(predictions) == 1:
        tables.show(_STAGE_HEADINGS, _stage_rows(*predictions), words=["blocks"], title=title)
    else:
        tables.show(_HEADINGS, map(_row, predictions), title=title)
    last = predictions[-1]
    print(
        f"{last.processes} process{'es' if last.processes > 1 else ''}: {1000 * last.step_seconds:.1f} ms a step, "
        f"{last.over_one_process:.2f} × as fast as one process ({1000 * measured.one_process_seconds:.1f} ms) and "
        f"{last.over_backprop:.2f} × as backprop ({1000 * measured.backprop_seconds:.1f} ms).\n"
        f"The last ones begin {1000 * last.fill_seconds:.0f} ms after the first."
    )


_SHARES = (
    "computes\n%",
    "exchanges\n%",
    "waits for\nits group, %",
    "for a\nbatch, %",
    "for room to\nsend, %",
    "link\n%",
)
_STAGE_HEADINGS = ("process", "blocks", *_SHARES)
_SHAPE = ("processes", "runs of\nblocks", "× parts of\ngroups")
_HEADINGS = (*_SHAPE, "ms / step", "× one\nprocess", "× backprop", *_SHARES)


def _shares(usage: Usage) -> Iterator[str]:
    """Where the time of a stage goes, in %; of its processes, on average."""
    computes = statistics.mean(usage.computes)
    peers = 1 - computes - usage.exchanges - usage.starves - usage.is_blocked
    for share in (computes, usage.exchanges, peers, usage.starves, usage.is_blocked, usage.link):
        yield f"{abs(100 * share):.0f}"  # rounding may leave -0


def _stage_rows(prediction: Prediction) -> Iterator[tuple[str, ...]]:
    width = prediction.width
    for s, (blocks, usage) in enumerate(zip(prediction.blocks, prediction.usage, strict=True)):
        yield _span(s * width, (s + 1) * width - 1), _span(*blocks), *_shares(usage)


def _row(prediction: Prediction) -> tuple[str, ...]:
    """The whole, and of its busiest stage where the time goes."""
    return (
        str(prediction.processes),
        str(len(prediction.blocks)),
        str(prediction.width),
        f"{1000 * prediction.step_seconds:.1f}",
        f"{prediction.over_one_process:.2f}",
        f"{prediction.over_backprop:.2f}",
        *_shares(max(prediction.usage, key=lambda usage: statistics.mean(usage.computes))),
    )


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} … {last}"
