"""How fast processes work through batches that they hand on to each other, simulated batch by batch.

    images ──► stage 1 ──link──► stage 2 ──link──► … ──link──► stage S

A stage trains a run of blocks: one process, or several that share the blocks' neuron groups. Times follow from what
``experiments.distributed`` does, not from a model of it: a process waits for its next batch, trains its blocks on it,
waits until of those that it sent at most one is on its way, sends, and goes on. A batch leaves when the one before has
left and the receiver has room, which it has for two batches that it has not begun with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

AHEAD = 2
"""Batches that are on their way from a sender at most, and for which a receiver has room: as the link has it."""


@dataclass(frozen=True)
class Stage:
    """Processes that work on the same batch at the same time.

    Attributes:
        seconds: of a step of each process, alone. One that is always slow has more.
        bytes_out: what each process of the next stage receives, per batch.
        exchanged: bytes that each process receives from the others of its stage in a step, exchange by exchange, while
            all of them wait.
    """

    seconds: Sequence[float]
    bytes_out: float = 0.0
    exchanged: Sequence[float] = ()


@dataclass(frozen=True)
class Link:
    """What connects any two processes, each way; it carries one message after the other, without loss.

    Attributes:
        bytes_per_second: its bandwidth.
        latency: seconds from the end of sending to the end of receiving, and of a word that there is room.
    """

    bytes_per_second: float = math.inf
    latency: float = 0.0

    def seconds(self, size: float) -> float:
        """How long a message of that many bytes occupies it."""
        return size / self.bytes_per_second


@dataclass(frozen=True)
class Usage:
    """Where the time of a stage goes: shares of a step, on average.

    Attributes:
        computes: of each process; what is left to 1 it waits for slower ones of its stage.
        exchanges: for features of the others of its stage.
        starves: waiting for the next batch.
        is_blocked: waiting to send.
        link: how long the link to the next stage is occupied, which goes on beside all that.
    """

    computes: list[float]
    exchanges: float
    starves: float
    is_blocked: float
    link: float


@dataclass(frozen=True)
class Flow:
    """What a simulation found.

    Attributes:
        step_seconds: from one batch to the next, once all stages have work.
        fill_seconds: until the last stage begins with the first batch.
        seconds: from the beginning to the end of the last stage's last step.
        usage: of each stage.
    """

    step_seconds: float
    fill_seconds: float
    seconds: float
    usage: list[Usage]


def simulate(
    stages: Sequence[Stage],
    link: Link = Link(),
    jitter: float = 0.0,
    leaves: float = 1.0,
    batches: int = 4000,
    seed: int = 0,
) -> Flow:
    """Let batches go through stages.

    Args:
        stages: in the order in which batches pass them; images are always ready for the first.
        link: between the processes.
        jitter: standard deviation of a process's step time over its mean: the times are lognormal, drawn anew for
            every step of every process.
        leaves: share of a step after which a stage hands on: all of it, as it is implemented; a third would be right
            after the forward pass.
        batches: how many, at least 2; the second half of them counts as the steady state.
        seed: of the drawn times.
    """
    generator, spread = np.random.default_rng(seed), math.sqrt(math.log1p(jitter**2))
    work = [
        np.array(stage.seconds)[:, None] * generator.lognormal(-(spread**2) / 2, spread, (len(stage.seconds), batches))
        for stage in stages
    ]
    exchange = [sum(link.seconds(size) + link.latency for size in stage.exchanged) for stage in stages]
    step = np.array([times.max(axis=0) + more for times, more in zip(work, exchange, strict=True)])
    transfer = [link.seconds(stage.bytes_out) for stage in stages[:-1]]
    start, sent = _pass_on(step, transfer, link.latency, leaves)

    end, half = sent + (1 - leaves) * step, batches // 2
    seconds = (end[-1, -1] - end[-1, half - 1]) / (batches - half)
    starved, blocked = start[:, 1:] - end[:, :-1], sent - start - leaves * step
    usage = [
        Usage(
            computes=[float(share) for share in work[s][:, half:].mean(axis=1) / seconds],
            exchanges=exchange[s] / seconds,
            starves=float(starved[s, half - 1 :].mean() / seconds),
            is_blocked=float(blocked[s, half:].mean() / seconds),
            link=[*transfer, 0.0][s] / seconds,
        )
        for s in range(len(stages))
    ]
    return Flow(float(seconds), float(start[-1, 0]), float(end[-1, -1]), usage)


def _pass_on(
    step: np.ndarray, transfer: Sequence[float], latency: float, leaves: float
) -> tuple[np.ndarray, np.ndarray]:
    """When each stage begins with each batch, and when it has handed it on: ``(S, batches)`` both.

    Args:
        step: seconds of each stage's step with each batch, ``(S, batches)``.
        transfer: seconds that a batch occupies the link behind each stage but the last.
        latency: of a link.
        leaves: share of a step before sending.
    """
    stages, batches = step.shape
    long_ago = [-math.inf] * AHEAD
    start, left = [long_ago.copy() for _ in range(stages)], [long_ago.copy() for _ in range(stages)]
    sent: list[list[float]] = [[] for _ in range(stages)]
    free = [0.0] * stages
    for batch in range(batches):
        arrived = 0.0
        for s, seconds in enumerate(step[:, batch].tolist()):
            begun = max(free[s], arrived)
            now = begun + leaves * seconds
            if s < stages - 1:
                now = max(now, left[s][-AHEAD])
                room = start[s + 1][-AHEAD] + latency
                left[s].append(max(now, left[s][-1], room) + transfer[s])
                arrived = left[s][-1] + latency
            start[s].append(begun)
            sent[s].append(now)
            free[s] = now + (1 - leaves) * seconds
    return np.array(start)[:, AHEAD:], np.array(sent)
