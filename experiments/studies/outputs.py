"""Output losses compared: accuracy at the best learning rate, and epochs to reach cross-entropy's final one.

    python -m experiments.studies.outputs RUNS... [--seeds 1 2 --suite FILE]

Reads the run folders below RUNS, which differ in output loss, learning rate and seed. The rate of each output is that
of the highest final validation accuracy at the first seed; test accuracy is of the last epoch. Epochs are counted up
to the first whose validation accuracy is at least cross-entropy's final one (the mean over its seeds). With
``--suite`` a suite of further seeds at the chosen rates is written.
"""

import argparse
import inspect
import json
import pkgutil
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import pandas as pd
import yaml

from experiments.run import tables
from experiments.run.files import CONFIG, METRICS, SUMMARY
from experiments.run.tables import NOTHING
from losses.outputs import CrossEntropy


class Run(NamedTuple):
    """A run: validation top-1 after each epoch, and test top-1 of the last one; None if it did not get there."""

    folder: Path
    output: str
    rate: float
    seed: int
    curve: Sequence[float]
    test: float | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The run in a folder, finished or not."""
        config, summary, metrics = (folder / name for name in (CONFIG, SUMMARY, METRICS))
        settings = yaml.safe_load(config.read_text())
        model = settings["model"]["init_args"]
        logged = pd.read_csv(metrics) if metrics.is_file() else pd.DataFrame()
        curve = list(logged["val/top1"].dropna()) if "val/top1" in logged else []
        test = json.loads(summary.read_text())["metrics"]["test/top1"] if summary.is_file() else None
        rate = model["optimizer"]["init_args"]["lr"]
        return cls(folder, _title(model["output_loss"]), rate, settings["seed_everything"], curve, test)

    def epochs_to(self, accuracy: float) -> str:
        """Epochs up to the first with at least that validation accuracy."""
        return next((str(epoch) for epoch, top1 in enumerate(self.curve, start=1) if top1 >= accuracy), NOTHING)


def _title(output: dict[str, Any]) -> str:
    """The output loss, and what is set of its parameters beside their defaults."""
    usual = inspect.signature(pkgutil.resolve_name(output["class_path"])).parameters
    given = output.get("init_args", {}).items()
    options = ", ".join(f"{name}={value}" for name, value in given if value != usual[name].default)
    return output["class_path"].rpartition(".")[2] + (f"({options})" if options else "")


def best_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Output → its finished runs at the rate that was best at the first seed, by seed; none if all failed."""
    first, best = min(run.seed for run in runs), {}
    for output in dict.fromkeys(run.output for run in runs):
        finished = [run for run in runs if run.output == output and run.test is not None]
        rate = max(finished, key=lambda run: (run.seed == first, run.curve[-1])).rate if finished else None
        best[output] = sorted((run for run in finished if run.rate == rate), key=lambda run: run.seed)
    return best


def table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, a row per output."""
    best, first = best_runs(runs), min(run.seed for run in runs)
    reference = statistics.fmean(run.curve[-1] for run in best[CrossEntropy.__name__])
    tried = {(run.output, run.rate): run for run in runs if run.seed == first}
    rates = sorted({rate for _, rate in tried})

    def at(output: str, rate: float) -> str:
        run = tried.get((output, rate))
        return NOTHING if run is None else "unfinished" if run.test is None else _percent([run.curve[-1]])

    def row(output: str, chosen: Sequence[Run]) -> list[str]:
        if not chosen:
            return [NOTHING] * 4
        val, test = [run.curve[-1] for run in chosen], [run.test for run in chosen if run.test is not None]
        epochs = ", ".join(run.epochs_to(reference) for run in chosen)
        return [f"{chosen[0].rate:g}", _percent(val), _percent(test), epochs]

    headings = ["output", *(f"val % at {rate:g}" for rate in rates), "best rate", "val top-1 %", "test top-1 %"]
    lines = [[output, *(at(output, rate) for rate in rates), *row(output, chosen)] for output, chosen in best.items()]
    return [*headings, f"epochs to {100 * reference:.2f} % val"], lines


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def further_seeds(chosen: Iterable[Run], seeds: Sequence[int]) -> dict[str, Any]:
    """A suite that repeats runs with other seeds."""
    return {
        "runs": [
            {
                "config": str(run.folder.resolve() / CONFIG),
                "name": run.folder.name.partition("-seed_everything")[0],
                "grid": {"seed_everything": list(seeds)},
            }
            for run in chosen
        ]
    }


def main(args: Sequence[str] | None = None) -> None:
    """Print the table; write the suite of further seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="of the suite that is written")
    parser.add_argument("--suite", type=Path, help="file to write it to")
    options = parser.parse_args(args)
    runs = [Run.read(file.parent) for folder in options.runs for file in sorted(folder.rglob(CONFIG))]
    best = best_runs(runs) if runs else {}
    if not best.get(CrossEntropy.__name__):
        parser.error(f"no finished run with {CrossEntropy.__name__} to compare with in the folders given")
    tables.show(*table(runs), words=["output"])
    print("val % at a rate: first seed. Epochs: up to cross-entropy's final validation accuracy, one number per seed.")
    if options.suite:
        suite = further_seeds([chosen[0] for chosen in best.values() if chosen], options.seeds)
        options.suite.write_text(yaml.safe_dump(suite, sort_keys=False))


if __name__ == "__main__":
    main()
