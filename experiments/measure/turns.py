"""Measuring in turns: a noisy machine disturbs all contenders alike."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ContextDecorator, contextmanager
from typing import Self, TypeVar

import torch

K = TypeVar("K")
T = TypeVar("T")

clock: Callable[[], float] = time.perf_counter
"""What is read; ``time.process_time`` counts what this process computes, whatever else the machine does."""


def in_turns(contenders: Mapping[K, Callable[[], T]], repetitions: int) -> dict[K, list[T]]:
    """Measure one contender after the other, as often as asked for.

    Args:
        contenders: name → measurement.
        repetitions: of the whole round.

    Returns:
        Name → what each of its measurements found.
    """
    rounds = [{name: measure() for name, measure in contenders.items()} for _ in range(repetitions)]
    return {name: [one[name] for one in rounds] for name in contenders}


def median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median of each repetition's own ratio: a machine that gets slower meanwhile disturbs neighbours alike."""
    return statistics.median(a / b for a, b in zip(values, base, strict=True))


def now(device: torch.device | str = "cpu") -> float:
    """Seconds on a clock, when a device has done all that was asked of it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def seconds(work: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Seconds that a piece of work takes."""
    start = now(device)
    work()
    return now(device) - start


class Stopwatch(ContextDecorator):
    """Adds up the seconds that pieces of work take: ``with watch: …``, or ``work = watch(work)``.

    On a GPU it waits for all that was asked of it, before and after.

    Args:
        device: where the work is done.

    Attributes:
        seconds: so far.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device, self.seconds = device, 0.0

    def __enter__(self) -> Self:
        self._start = now(self._device)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.seconds += now(self._device) - self._start


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
