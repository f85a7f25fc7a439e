"""``metrics.csv`` that a resumed run continues."""

import csv
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from experiments.run_folder import METRICS


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, but rows that are there already stay.

    Args:
        folder: the run folder.
        resume_step: rows of this step and later are dropped, because the resumed run writes them again.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        super().__init__(folder, name="", version="")
        self._resume_step = resume_step

    @property
    def experiment(self) -> ExperimentWriter:
        """The writer, made at its first use (on rank 0, like Lightning's)."""
        if self._experiment is None:
            path = Path(self.save_dir) / METRICS
            rows = _rows(path, self._resume_step)
            path.unlink(missing_ok=True)  # Lightning's writer would delete it, with a warning
            writer = CSVLogger.experiment.fget(self)
            writer.metrics = rows
            writer.save()
        return self._experiment


def _rows(path: Path, before: int) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if int(row["step"]) < before]
