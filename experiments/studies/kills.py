"""Does a run that is killed and goes on end as one that was not? SIGKILL at every write of an epoch's end.

    python -m experiments.studies.kills --only decoupled_greedy-K2 layerwise --folder /mnt/elsewhere/runs
    python -m experiments.studies.kills --only loco --trainer.precision bf16-mixed   # further options go to every run

Runs of ``same_training.yaml`` train undisturbed, then once per file operation in the run folder (open for writing,
rename, link, remove) from the end of the first epoch to that of the second: the process kills itself right before that
operation, and the same command goes on with ``--ckpt_path last``. What must be equal: all weights in ``last.ckpt`` and
``best.ckpt``, every row of ``metrics.csv``, every scalar in TensorBoard and every metric in ``summary.json``, but for
times; and nothing else may be in the folder. Exits with 1 if something differs.
"""

import argparse
import csv
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli import main
from experiments.run.files import BEST, LAST, METRICS, SUMMARY
from experiments.suite import Run, read_suite

_LIST = Path(__file__).with_name("same_training.yaml")
_ALWAYS = ("--trainer.log_every_n_steps=5", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
_OPERATIONS = ("open", "os.rename", "os.link", "os.remove")
_TIMED = re.compile(r"seconds|images_per_second|train/epoch_time")


class Operations:
    """The file operations of this process in a folder, and a function that is called before each with its number.

    Of ``open`` those for writing. What torch writes in C++ is not seen, but the rename after it is.
    """

    def __init__(self, folder: Path, before_each: Callable[[int], None]) -> None:
        self.folder, self.before_each = str(folder), before_each
        self.files: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _OPERATIONS or (event == "open" and not _writes(arguments[2])):
            return
        file = str(arguments[1 if event in ("os.rename", "os.link") else 0])
        if file.startswith(self.folder):
            self.files.append(file)
            self.before_each(len(self.files))


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def train(run: Run, runs: Path, *more: str, kill_at: int | None = None) -> tuple[int, list[str]]:
    """Train in a process of its own; its exit code, and the file of each of its operations, if it was not killed."""
    here, there = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=_train, args=(run, runs, more, kill_at, there))
    process.start()
    there.close()
    try:
        files = here.recv()
    except EOFError:
        files = []
    process.join()
    return process.exitcode or 0, files


def _train(run: Run, runs: Path, more: Sequence[str], kill_at: int | None, there: Connection) -> None:
    def kill(number: int) -> None:
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    operations = Operations(runs / run.name, kill)
    line = ["fit", f"--config={run.config}", *run.options, *_ALWAYS, f"--runs={runs}", f"--name={run.name}", *more]
    # The command line of this process, by which Lightning starts others.
    sys.modules["__main__"].__spec__, sys.argv = importlib.util.find_spec("experiments.__main__"), ["", *line]
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    main(line)
    there.send(operations.files)


def left(folder: Path) -> dict[str, Any]:
    """What a run left, times left out: name of the thing → its content."""
    found: dict[str, Any] = {
        "files": sorted({re.sub(r"tfevents.*", "tfevents", str(f.relative_to(folder))) for f in folder.rglob("*")})
    }
    for name in (LAST, BEST):
        if (folder / name).is_file():
            saved = torch.load(folder / name, map_location="cpu", weights_only=True)
            weights = {key: tensor.numpy().tobytes() for key, tensor in saved["state_dict"].items()}
            found[name] = saved["epoch"], saved["global_step"], weights
    with (folder / METRICS).open(newline="") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    timeless = [{name: value for name, value in row.items() if not _TIMED.search(name)} for row in rows]
    found[METRICS] = sorted(str(sorted(row.items())) for row in timeless if row.keys() > {"epoch", "step"})
    page = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    names = [name for name in page.Tags()["scalars"] if not _TIMED.search(name)]
    found["TensorBoard"] = {name: [(event.step, event.value) for event in page.Scalars(name)] for name in names}
    metrics = json.loads((folder / SUMMARY).read_text())["metrics"]
    found[SUMMARY] = {name: value for name, value in metrics.items() if not _TIMED.search(name)}
    return found


def kills(run: Run, runs: Path, every: int, *options: str) -> int:
    """Kill a run at operations of its second epoch's end; how often it ended otherwise. Prints what differed."""
    run = replace(run, options=(*run.options, *options))
    _, files = train(run, runs / "whole")
    expected = left(runs / "whole" / run.name)
    ends = [number for number, file in enumerate(files, start=1) if file.endswith(LAST)]
    moments, wrong = range(max(1, ends[0] - 6), min(ends[:2][-1] + 6, len(files)), every), 0
    for moment in moments:
        folder = runs / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        ended, _ = train(run, folder, kill_at=moment)
        resume = ["--ckpt_path=last"] if (folder / run.name / LAST).is_file() else []
        gone_on, _ = train(run, folder, *resume)
        found = left(folder / run.name) if (folder / run.name / SUMMARY).is_file() else {}
        differing = [name for name in expected if found.get(name) != expected[name]]
        if ended != -signal.SIGKILL or differing:
            wrong += 1
            file = Path(files[moment - 1]).name
            print(f"{run.name}: killed before operation {moment}, on {file} (ended {ended}, then {gone_on}): ", end="")
            print(", ".join(differing), "differ")
    print(f"{run.name:30} {len(moments)} kills, {wrong} ended otherwise", flush=True)
    return wrong


if __name__ == "__main__":
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every resume
    listed = {run.name: run for run in read_suite(_LIST)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=listed, default=list(listed), help="some of the runs")
    parser.add_argument("--folder", type=Path, help="where the runs are written; a temporary folder by default")
    parser.add_argument("--every", type=int, default=1, help="kill at every so many of the operations")
    given, further = parser.parse_known_args()
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        raise SystemExit(sum(kills(listed[name], Path(scratch), given.every, *further) for name in given.only) > 0)
