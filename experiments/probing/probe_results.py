"""What a probe found: the table, the run's summary, its TensorBoard page."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from experiments.probing.saved_network import Checkpoint
from experiments.run import tables
from experiments.run.files import PROBE, SUMMARY
from experiments.run.loggers import RunTensorBoardLogger
from experiments.run.reading import read_summary
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


_NAME = re.compile(
    r"(?P<network>\w+/)?(?P<judge>probe_lin|probe_shared|probe_distilled|association|knn|effective_rank)[^/]*?"
    r"(_labels(?P<share>[\d.e-]+))?"
    r"/block(?P<block>\d+)/(?P<kind>[\w.]+)(?P<figure>/.+)?"
)
_HEADINGS = {
    "probe_lin/top1": "linear",
    "probe_lin/top5": "top-5",
    "probe_lin/top1_best_on_test": "best on test",
    "probe_lin/corrupted/top1": "corrupted",
    "probe_shared/top1": "shared",
    "probe_distilled/top1": "distilled",
    "association/top1": "association",
    "association/top1_by_largest": "by the largest",
    "knn/top1": "kNN",
    "effective_rank": "rank",
}
"""Beginning of a protocol's name and figure → its column; in the table's order."""
_NETWORKS = {None: "trained", "random/": "random", "reestimated/": "re-estimated"}
"""Which network a metric is of → what its rows are called; in the table's order."""


def table_of(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Headings, and one row per block, kind of features and network: accuracies on the test split in %, and rank."""
    cells: dict[tuple[int, bool, str, int, float], dict[str, str]] = {}
    for name, value in findings.metrics.items():
        found = _NAME.fullmatch(name)
        if found and (heading := _HEADINGS.get(found["judge"] + (found["figure"] or ""))):
            network, share = list(_NETWORKS).index(found["network"]), float(found["share"] or 1)
            row = (int(found["block"]), found["kind"] != "gap", found["kind"], network, -share)
            cells.setdefault(row, {})[heading] = f"{value:.1f}" if heading == "rank" else f"{100 * value:.2f}"
    names = list(_NETWORKS.values())
    columns = [heading for heading in _HEADINGS.values() if any(heading in row for row in cells.values())]
    few = any(share > -1 for *_, share in cells)
    rows = [
        [str(block), kind, names[network], *([f"{-100 * share:g} %"] if few else []), *map(row.get, columns)]
        for (block, _, kind, network, share), row in sorted(cells.items())
    ]
    headings = ["block", "features", "network", *(["labels"] if few else []), *columns]
    return headings, [[cell or tables.NOTHING for cell in row] for row in rows]


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
    summary = read_summary(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
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
