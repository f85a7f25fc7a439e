"""TensorBoard events and ``metrics.csv`` that a resumed run continues."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from typing_extensions import override

from experiments.run.files import METRICS
from experiments.run.written import in_one_move, naming


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, writing straight into the run folder.

    Args:
        folder: the run folder.
        resume_step: TensorBoard forgets this step and later ones, which the resumed run writes again.
    """

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        purge: dict[str, Any] = {"purge_step": resume_step} if resume_step else {}
        _wait_for_a_later_name(folder)
        super().__init__(folder, name="", version="", default_hp_metric=False, **purge)

    @override
    def save(self) -> None:
        """Flush; Lightning's would also leave an empty hparams.yaml."""
        self.experiment.flush()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Flush after a training, whose test follows: in a file of its own it could be read before the training.

        Event files are read in the order of their names, of which those of one second are not in that of their making.
        """
        if status == "success":
            self.save()
        else:
            super().finalize(status)


def _wait_for_a_later_name(folder: Path) -> None:
    """Event files are read in the order of their names, which begin with the second of their making.

    A run resumed within the second in which it had begun, or after the clock was set back, would else be read before
    its own beginning. Names from a time that is still to come become names of now.
    """
    for file in sorted(folder.glob("events.out.tfevents.[0-9]*")):
        made, now = file.name.split(".")[3], str(int(time.time()))
        if made > now:
            file.rename(file.with_name(file.name.replace(made, now, 1)))
        if made >= now:
            time.sleep(1 - time.time() % 1)


class RunCSVLogger(Logger):
    """Writes ``metrics.csv`` of the run folder: a row for every call, a column for every metric there was so far.

    Lightning's own empties a file that is there, and one that a resumed run had written; and it writes anew in place,
    which a kill may hit.

    Args:
        folder: the run folder.
        resume_step: rows of this step and later, which the resumed run writes again, are dropped; not before there is
            a row to write, so that a resume that is refused drops none.
    """

    name, version = "", ""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        super().__init__()
        self.file = folder / METRICS
        self._resume_step = resume_step
        self._columns: list[str] = []

    @override
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: ``config.yaml`` has them."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Write a row."""
        row: dict[str, Any] = {name: v.item() if isinstance(v, Tensor) else v for name, v in metrics.items()}
        row["step"] = step
        if self.file.is_file() and row.keys() <= set(self._columns):
            with naming(self.file), self.file.open("a", newline="") as file:
                file.write(_lines([row], self._columns))
            return
        earlier = _rows(self.file, before=None if self._columns else self._resume_step)
        self._columns = sorted({*row, *(earlier[0] if earlier else ())})
        with in_one_move(self.file) as part, part.open("w", newline="") as file:
            file.write(_lines([dict(zip(self._columns, self._columns, strict=True)), *earlier, row], self._columns))


def _lines(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()


def _rows(path: Path, before: int | None) -> list[dict[str, str]]:
    """The rows of the steps before one, or all; what a kill left half written, or a disk garbled, is left out.

    A table whose head is not legible is put aside as ``metrics.csv.damaged``.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    if rows.fieldnames is not None and "step" not in rows.fieldnames:
        path.replace(path.with_name(f"{path.name}.damaged"))
        return []
    whole = [row for row in rows if None not in row and (row.get("step") or "").isdecimal()]
    return [row for row in whole if before is None or int(row["step"]) < before]
