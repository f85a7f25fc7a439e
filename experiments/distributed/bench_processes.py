"""``bench --processes n``: blocks apart beside one process, replicas, and torch's pipelining.

All are measured in one run, in turns: the same network, the same global batch. What goes through Lightning has loader,
augmentation and logging in it; pipelines are bare loops on one ready batch. The time of a step is that of the slowest
process, after a warm-up in which queues fill, and while all processes still have steps to go.
"""

import json as json_format
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import lightning.pytorch as L

from datamodules.base import ImageDataModule
from experiments.distributed.block_parallel import why_not_apart
from experiments.distributed.ddp import DDP
from experiments.distributed.team import ALONE, APART, HOUR, REPLICAS, Figures, Team, slowest
from experiments.measure.bench import require_all_at_once, settings_of
from experiments.measure.silent import silent_trainer
from experiments.measure.turns import in_turns, median_ratio
from experiments.run import tables
from losses.errors import UsageError
from models.local_learning import LocalLearning


@dataclass
class Way:
    """What was measured of one way to train.

    Attributes:
        images_per_second: from the median step.
        step_seconds: median over the repetitions of the slowest process' mean step.
        peak_activation_bytes: of each process: most bytes held for backward passes at one time.
        sent_bytes: of each process, in a step: operation of torch.distributed → bytes handed to it.
    """

    images_per_second: float
    step_seconds: float
    peak_activation_bytes: list[int]
    sent_bytes: list[dict[str, float]]


@dataclass
class ProcessBench:
    """All results of ``bench --processes``.

    Attributes:
        ways: name → what was measured.
        best_pipeline: the fastest of ``ways`` that is pipelining; None if none was run.
        pipelines: schedule and micro-batches → seconds of a step in a short try, to find each schedule's best.
        not_run: the same, or ``pipelining`` for all → why.
        profile: of blocks apart, for each process: ``blocks``, numbers of the first and last, and medians of seconds:
            ``step``, and of it ``compute`` (forward, backward and update of its blocks), ``input`` (waiting for the
            process before), ``room`` (sending, and waiting for the next process) and ``rest`` (loader, loop, logging).
        ratios: ``speedup_over_one_process``; ``speedup_over_pipelining``, at its best; ``step_over_slowest_block``: the
            step over the most that a process computes meanwhile; ``imbalance``: that over the mean of all; and
            ``sent_over_parameters``: gradients that a replica sends over its parameters, in bytes. Ratios of times are
            medians of the repetitions' own.
        settings: network, batch size, processes, threads of each, precision, machine and allocator.
    """

    ways: dict[str, Way]
    best_pipeline: str | None
    pipelines: dict[str, float]
    not_run: dict[str, str]
    profile: list[dict[str, Any]]
    ratios: dict[str, float]
    settings: dict[str, Any]


def bench_processes(
    model: LocalLearning, data: ImageDataModule, trainer: L.Trainer, steps: int, repetitions: int, processes: int
) -> ProcessBench:
    """Measure in several processes: Lightning's launcher starts them, unless torchrun or others have.

    Args:
        model: the method.
        data: gives image shape, augmentation, and the batch size of all processes together.
        trainer: gives device, precision and number of machines.
        steps: training steps per repetition that are measured.
        repetitions: of each contender, in turns.
        processes: how many.

    Raises:
        UsageError: the blocks learn one after the other, or cannot be shared by so many processes; nor can the batch.
    """
    require_all_at_once(model)
    if why := why_not_apart(model, processes):
        raise UsageError(f"{why}: choose another --processes.")
    if data.batch_size % processes or processes % trainer.num_nodes:
        raise UsageError(
            f"{processes} processes share a batch evenly, and stand evenly on machines: {data.batch_size} images and "
            f"--trainer.num_nodes {trainer.num_nodes} do not fit --processes {processes}."
        )
    several = silent_trainer(
        accelerator=trainer.strategy.root_device.type,
        precision=trainer.precision,
        strategy=DDP(timeout=HOUR),
        devices=processes // trainer.num_nodes,
        num_nodes=trainer.num_nodes,
    )
    work = partial(_bench, model, data, several, steps, repetitions)
    assert several.strategy.launcher
    return cast(ProcessBench, several.strategy.launcher.launch(work, trainer=several))


def _bench(
    model: LocalLearning, data: ImageDataModule, trainer: L.Trainer, steps: int, repetitions: int
) -> ProcessBench:
    trainer.strategy.setup_environment()
    team = Team(model, data, trainer, steps)
    pipelines, tried, not_run = team.pipelines()
    contenders = team.contenders() | pipelines
    footprints = {name: team.footprint(measure) for name, measure in contenders.items()}
    found = in_turns(contenders, repetitions)
    seconds = {name: [*map(slowest, figures)] for name, figures in found.items()}
    ways = {name: _way(data.batch_size, seconds[name], footprints[name]) for name in contenders}
    return ProcessBench(
        ways=ways,
        best_pipeline=min(pipelines, key=lambda name: ways[name].step_seconds, default=None),
        pipelines=tried,
        not_run=not_run,
        profile=_profile(found[APART], team.shares),
        ratios=_ratios(seconds, found[APART], ways, [*pipelines], model),
        settings=settings_of(model, data, trainer)
        | {"processes": trainer.world_size, "steps": steps, "repetitions": repetitions},
    )


def _way(images: int, seconds: Sequence[float], footprint: Figures) -> Way:
    median, taken = statistics.median(seconds), [dict(own) for own in footprint if own]
    return Way(images / median, median, [int(own.pop("peak")) for own in taken], taken)


def _profile(repetitions: Sequence[Figures], shares: Sequence[range]) -> list[dict[str, Any]]:
    profile = []
    for rank, share in enumerate(shares):
        own = {key: statistics.median(figures[rank][key] for figures in repetitions) for key in repetitions[0][rank]}
        step = own.pop("seconds")
        profile.append({"blocks": [share.start + 1, share.stop], "step": step, **own, "rest": step - sum(own.values())})
    return profile


def _ratios(
    seconds: Mapping[str, Sequence[float]],
    apart: Sequence[Figures],
    ways: Mapping[str, Way],
    pipelines: Sequence[str],
    model: LocalLearning,
) -> dict[str, float]:
    computed = [[own["compute"] for own in figures] for figures in apart]
    slowest = [max(each) for each in computed]
    parameters = sum(weight.nbytes for weight in model.parameters())
    ratios = {
        "speedup_over_one_process": median_ratio(seconds[ALONE], seconds[APART]),
        "step_over_slowest_block": median_ratio(seconds[APART], slowest),
        "imbalance": median_ratio(slowest, [*map(statistics.mean, computed)]),
        "sent_over_parameters": ways[REPLICAS].sent_bytes[0]["allreduce_"] / parameters,
    }
    if pipelines:
        best = min(pipelines, key=lambda name: ways[name].step_seconds)
        ratios["speedup_over_pipelining"] = median_ratio(seconds[best], seconds[APART])
    return ratios


def show_bench_processes(result: ProcessBench, json: bool) -> None:
    """Print the results as tables, or as JSON."""
    if json:
        print(json_format.dumps(asdict(result), indent=2))
        return
    settings = result.settings
    threads = "1 thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    title = (
        f"{settings['network']}, K = {settings['num_blocks']}, G = {settings['num_groups']}, batch "
        f"{settings['batch_size']}, {settings['device']}, {settings['processes']} processes × {threads}"
    )
    headings = ("", "images/s", "ms /\nstep", "× one\nprocess", "peak\nMiB", "MiB\nsent")
    tables.show(headings, _rows(result), words=[""], title=title)
    profile = ("process", "blocks", "ms / step", "compute", "wait for\ninput", "send, wait\nfor room", "rest")
    tables.show(profile, _profile_rows(result.profile), title="Where the time of blocks apart goes, ms:")
    print("\n".join(_remarks(result)))


def _rows(result: ProcessBench) -> Iterator[tuple[str, ...]]:
    alone = result.ways[ALONE].step_seconds
    for name, way in result.ways.items():
        yield (
            name,
            f"{way.images_per_second:.0f}",
            f"{1000 * way.step_seconds:.1f}",
            f"{alone / way.step_seconds:.2f}",
            f"{max(way.peak_activation_bytes) / 2**20:.1f}",
            f"{sum(sum(own.values()) for own in way.sent_bytes) / 2**20:.2f}",
        )


def _profile_rows(profile: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for rank, own in enumerate(profile):
        first, last = own["blocks"]
        times = (f"{1000 * own.get(part, 0.0):.1f}" for part in ("step", "compute", "input", "room", "rest"))
        yield str(rank), f"{first} … {last}", *times


def _remarks(result: ProcessBench) -> Iterator[str]:
    settings, ratios = result.settings, result.ratios
    yield "peak: activations of the process that holds most; sent: by all processes together, in a step"
    yield f"blocks apart     {ratios['speedup_over_one_process']:.2f} × as fast as one process"
    if result.best_pipeline:
        yield f"                 {ratios['speedup_over_pipelining']:.2f} × as fast as {result.best_pipeline}"
    yield f"their step       {ratios['step_over_slowest_block']:.3f} × what the slowest process computes meanwhile"
    yield f"balance          the slowest process computes {ratios['imbalance']:.3f} × as long as all do on average"
    yield f"replicas         send {ratios['sent_over_parameters']:.2f} × their parameters in bytes, each"
    if settings["device"] == "cpu":
        yield "                 processes of one machine share its cores: over its threads there is little to win"
    yield from (f"not run          {name}: {why}" for name, why in result.not_run.items())
    count = settings["repetitions"] * settings["steps"]
    yield (
        f"{settings['allocator']}; medians of {settings['repetitions']} repetitions of {settings['steps']} steps, "
        "in turns (of ratios: the repetitions' own)." + (" Too few to trust." if count < 15 else "")
    )
