"""What a probe found: the table, the run's summary, its TensorBoard page."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from experiments.probing.saved_network import Checkpoint
from experiments.run import tables
from experiments.run.files import PROBE, SUMMARY
from experiments.run.loggers import RunTensorBoardLogger
from experiments.run.summary import write_json


@dataclass
class Findings:
    """Metrics under their logged names, seconds of each part of the work, number of images through a frozen network."""

    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time of what is done within."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


_NAME = re.compile(r"(?P<control>random/)?(?P<protocol>[^/]+)/block(?P<block>\d+)/(?P<kind>\w+)(/top1)?")
_JUDGES = {"probe_lin": "linear", "knn": "kNN", "effective_rank": "rank"}
"""Beginning of a protocol's name → its column; in the table's order."""


def table_of(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Headings, and one row per block and kind of features: accuracies on the test split in %, and effective rank."""
    cells: dict[tuple[int, bool, str], dict[str, str]] = {}
    for name, value in findings.metrics.items():
        if found := _NAME.fullmatch(name):
            judge = next(title for start, title in _JUDGES.items() if found["protocol"].startswith(start))
            text = f"{value:.1f}" if judge == "rank" else f"{100 * value:.2f}"
            row = (int(found["block"]), found["kind"] != "gap", found["kind"])
            cells.setdefault(row, {})[("random " if found["control"] else "") + judge] = text
    known = {heading for row in cells.values() for heading in row}
    columns = [c + judge for c in ("", "random ") for judge in _JUDGES.values() if c + judge in known]
    rows = [
        [str(row[0]), row[2], *(cells[row].get(column, tables.NOTHING) for column in columns)] for row in sorted(cells)
    ]
    return ["block", "features", *columns], rows


def show(findings: Findings, title: str) -> None:
    """Print the table, the supervised control, and where the time went."""
    tables.show(*table_of(findings), title=title)
    if (supervised := findings.metrics.get("supervised/test/top1")) is not None:
        print(f"supervised, end to end: {100 * supervised:.2f} %")
    times = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in findings.seconds.items())
    print(f"{times}; {findings.images / findings.seconds['extraction']:,.0f} images/s through the frozen network")


def record(findings: Findings, checkpoint: Checkpoint, dataset: str) -> None:
    """Write the metrics into the run's ``summary.json`` and TensorBoard page; or, if they are no final ones, elsewhere.

    A summary speaks of the last weights and the run's own data set. Metrics of other weights or data, or
    of an unfinished run, which must have no summary, go to ``probe.json``.
    """
    folder, step = checkpoint.folder, checkpoint.step
    summary = json.loads((folder / SUMMARY).read_text()) if (folder / SUMMARY).is_file() else {}
    if (summary.get("global_step"), summary.get("dataset")) != (step, dataset):
        about = {"checkpoint": checkpoint.file.name, "global_step": step, "dataset": dataset}
        write_json(folder / PROBE, about | {"metrics": findings.metrics})
        print(f"Written to {folder / PROBE}: these are not the final weights of a finished run on its own data.")
        return
    write_json(folder / SUMMARY, summary | {"metrics": dict(sorted((summary["metrics"] | findings.metrics).items()))})
    logger = RunTensorBoardLogger(folder)
    logger.log_metrics(findings.metrics, step)
    logger.experiment.add_text("probe", tables.markdown(*table_of(findings)), step)
    logger.finalize("success")
    print(f"Written to {folder / SUMMARY}\nTo watch:   tensorboard --logdir {folder}")
