"""Who of the processes is still there: each beats once a second, in the store where all have met."""

import contextlib
import itertools
import platform
import threading
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch.distributed as dist

_SECOND = 1.0
"""Between beats, and between looks."""

_SILENT = 20
"""Looks at the same beat after which a process counts as lost."""


class Beat(NamedTuple):
    """A sign of life.

    Attributes:
        doing: ``works``; ``waits``, in vain for others; or ``rests``: the process has not begun, or is done.
        number: of the beat.
        host: where the process is.
    """

    doing: str = "rests"
    number: str = "0"
    host: str = "another machine"


class Heartbeat:
    """Beats for this process, and looks at the beats of all, in threads of its own.

    What a process does, and for how long, is not judged: one that compiles, decodes or evaluates for minutes beats on.
    Lost is whose beat stays the same: it was killed or stopped, or its machine or the link to it is gone. Looks are
    counted, not seconds: a run that is stopped as a whole, and goes on, has lost nobody. A process that runs without
    end cannot be told from a slow one. Only when the others have waited in vain, as long as the strategy's ``timeout``
    says, is it the one that has not.

    Args:
        store: where the processes have met; it is used through a connection of its own, which may hang.
        rank: of this process.
        count: of all processes.
        on_loss: is called with the ranks that are lost, and what to say of it.
    """

    def __init__(
        self, store: dist.Store, rank: int, count: int, on_loss: Callable[[Collection[int], str], None]
    ) -> None:
        self._store = dist.PrefixStore("heartbeat", store.clone())
        self._rank, self._ranks, self._on_loss = rank, range(count), on_loss
        self._doing = "works"
        self._heard = [Beat()] * count
        self._looks = [0] * count  # at the same beat
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._look)]
        for thread in self._threads:
            thread.start()

    def stop(self, done: bool) -> None:
        """Beat no more; the others miss this process unless it is done."""
        self._doing = "rests" if done else self._doing
        self._over.set()
        for thread in self._threads:
            thread.join(2 * _SECOND)  # no longer: the store may be lost

    def missed(self, no_matter: Callable[[], bool]) -> str:
        """What to say when an exchange has failed: for whom this process waited in vain.

        Args:
            no_matter: whether to wait no longer until that shows.
        """
        self._doing = "waits"
        for _ in range(_SILENT + 2):
            if self._lost() or no_matter():
                break
            time.sleep(_SECOND)
        return self._told(self._lost())

    def _beat(self) -> None:
        keys = [str(rank) for rank in self._ranks]
        with contextlib.suppress(dist.DistError):  # the store is lost, which shows in the beats
            for key in keys:
                self._store.compare_set(key, "", " ".join(Beat()))
            for number in itertools.count():
                self._store.set(keys[self._rank], " ".join(Beat(self._doing, str(number), platform.node())))
                self._heard = [Beat(*beat.decode().split(" ", 2)) for beat in self._store.multi_get(keys)]
                if self._over.is_set():
                    break
                self._over.wait(_SECOND)

    def _look(self) -> None:
        before = self._heard
        while not self._over.wait(_SECOND):
            heard = self._heard
            for rank in self._ranks:
                silent = heard[rank] == before[rank] and heard[rank].doing != "rests"
                self._looks[rank] = self._looks[rank] + 1 if silent else 0
            before = heard
            if lost := self._lost():
                self._on_loss(lost, self._told(lost))

    def _lost(self) -> list[int]:
        """Who is silent, but for those that waited in vain for others; the first process, if the store is silent."""
        silent = [rank for rank in self._ranks if self._looks[rank] >= _SILENT]
        if self._rank in silent:
            return [0]
        return [rank for rank in silent if self._heard[rank].doing == "works"] or silent

    def _told(self, lost: Collection[int]) -> str:
        if lost:
            return (
                f"No sign of life of {self._names(lost)}: killed or stopped, or its machine or the link to it is lost."
            )
        busy = [rank for rank in self._ranks if rank != self._rank and self._heard[rank].doing == "works"]
        if busy:
            return f"{self._names(busy)} has kept the others waiting for longer than --trainer.strategy.timeout says."
        return "Another process of this run ended, or did not answer in time."

    def _names(self, ranks: Collection[int]) -> str:
        return ", ".join(f"process {rank} on {self._heard[rank].host}" for rank in ranks)
