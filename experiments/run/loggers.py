"""TensorBoard events and ``metrics.csv`` that a resumed run continues."""

import csv
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from typing_extensions import override

from experiments.run.files import METRICS


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


def _wait_for_a_later_name(folder: Path) -> None:
    """Event files are read in the order of their names, which begin with the second of their making.

    A run resumed within the second in which it had begun would else be read before its own beginning.
    """
    now = str(int(time.time()))
    if any(file.name.split(".")[3] == now for file in folder.glob("events.out.tfevents.*")):
        time.sleep(1 - time.time() % 1)


class RunCSVLogger(CSVLogger):
    """Lightning's CSV logger, but rows that are there already stay.

    Args:
        folder: the run folder.
        resume_step: rows of this step and later, which the resumed run writes again, are dropped.
    """

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        super().__init__(folder, name="", version="")
        self._resume_step = resume_step

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer, made at its first use (on rank 0, like Lightning's)."""
        if self._experiment is None:
            path = Path(self.save_dir) / METRICS
            kept = path.with_suffix(".csv.kept")  # Lightning's writer deletes the file that it finds
            if path.is_file():
                path.replace(kept)
            writer: ExperimentWriter = super().experiment
            writer.metrics = _rows(kept, self._resume_step)  # type: ignore[assignment]  # as text, as they were
            writer.save()
            kept.unlink(missing_ok=True)
        return self._experiment  # type: ignore[return-value]  # set by Lightning's

    @override
    def save(self) -> None:
        """Write the rows; Lightning's would also leave an empty hparams.yaml."""
        super().save()
        (Path(self.save_dir) / ExperimentWriter.NAME_HPARAMS_FILE).unlink(missing_ok=True)


def _rows(path: Path, before: int) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) < before]
