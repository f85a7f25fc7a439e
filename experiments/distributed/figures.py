"""What other processes log of their blocks comes to the first one, which writes."""

import json
from collections.abc import Mapping, Sequence

import torch.distributed as dist
from lightning.pytorch.loggers import Logger
from torch import Tensor
from typing_extensions import override

from models.method import Method


class FiguresForFirst(Logger):
    """Leaves figures where the first process finds them: in the store that the processes met at.

    Args:
        store: the store.
        rank: of this process.
        own: how the names of its figures begin.
    """

    name, version = "", ""

    def __init__(self, store: dist.Store, rank: int, own: Sequence[str]) -> None:
        super().__init__()
        self._store, self._rank, self._own, self._count = store, rank, tuple(own), 0

    @override
    def log_hyperparams(self, *_: object, **__: object) -> None:
        """Nothing: the first process has them."""

    @override
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Leave a row."""
        row = {name: float(value) for name, value in metrics.items() if name.startswith(self._own)}
        if row:
            self._store.set(f"{self._rank}/{self._count}", json.dumps([step, row]))
            self._count += 1


class FiguresOfOthers(Logger):
    """Whenever the first process logs, it also logs what the others have left.

    Args:
        store: the store.
        others: ranks.
        loggers: where to.
        model: knows the newest, for the progress bar.
    """

    name, version = "", ""

    def __init__(self, store: dist.Store, others: Sequence[int], loggers: Sequence[Logger], model: Method) -> None:
        super().__init__()
        self._store, self._loggers, self._model = store, loggers, model
        self._next = dict.fromkeys(others, 0)

    @override
    def log_hyperparams(self, *_: object, **__: object) -> None:
        """Nothing."""

    @override
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Look what is there."""
        self.collect()

    def collect(self) -> None:
        """Log all rows that are there."""
        for rank in self._next:
            while self._store.check([key := f"{rank}/{self._next[rank]}"]):
                of_step, row = json.loads(self._store.get(key))
                self._store.delete_key(key)
                self._next[rank] += 1
                self._model.latest.update(row)
                for logger in self._loggers:
                    logger.log_metrics(row, step=of_step)
