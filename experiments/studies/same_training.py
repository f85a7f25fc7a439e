"""Does a change of the code leave every training as it was? Losses, weights and checkpoints of two checkouts.

    git worktree add ../before COMMIT
    python -m experiments.studies.same_training ../before .

The runs of ``same_training.yaml`` train in both checkouts, one thread, seed 0. What must be equal, bit for bit: the
losses of all steps, and the final weights; also those that the second checkout reaches when it goes on from a
checkpoint that the first one wrote half-way. Exits with 1 if something differs.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from experiments.run.files import LAST, METRICS, PREVIOUS, SUMMARY
from experiments.suite import Run, read_suite

_LIST = Path(__file__).resolve().with_suffix(".yaml")
_ALWAYS = ("--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
_NOT_RESUMED = ("two_processes",)  # its hooks' first epoch is a calibration: nothing new is learned from a resume


def fit(checkout: Path, runs: Path, run: Run, *more: str) -> Path:
    """Train in a checkout, by its own config; the run folder."""
    line = ["fit", "--config", str(run.config.relative_to(_LIST.parents[2])), *run.options, *_ALWAYS, *more]
    command = [sys.executable, "-m", "experiments", *line, f"--runs={runs}", f"--name={run.name}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{run.name} failed in {checkout}: {done.stderr[-2000:]}")
    return runs / run.name


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """(step, name, value) of every loss of every block in training."""
    with (folder / METRICS).open(newline="") as file:
        return sorted(
            (row["step"], name, value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name.startswith("train/") and name.endswith("/loss")
        )


def weights(folder: Path) -> list[bytes]:
    """Every parameter and buffer at the end, whatever they are called."""
    state = torch.load(folder / LAST, map_location="cpu", weights_only=True)["state_dict"]
    return sorted(tensor.contiguous().numpy().tobytes() for tensor in state.values())


def resumed(checkout: Path, before: Path, runs: Path, run: Run) -> Path:
    """Go on in a checkout from the last checkpoint but one of a run of another."""
    last = runs / run.name / LAST
    last.parent.mkdir(parents=True)
    shutil.copy(before / PREVIOUS, last)
    return fit(checkout, runs, run, "--ckpt_path=last")


def same(before: Path, after: Path, run: Run, kept: Path, scratch: Path) -> bool:
    """Train, where the first checkout's run is not kept, compare and print; whether all was equal."""
    one = kept / run.name if (kept / run.name / SUMMARY).is_file() else fit(before, kept, run)
    other = fit(after, scratch / "after", run)
    found = {
        f"{len(losses(one))} losses": losses(one) == losses(other),
        f"{len(weights(one))} tensors": weights(one) == weights(other),
    }
    if run.name not in _NOT_RESUMED:
        found["resumed"] = weights(one) == weights(resumed(after, one, scratch / "resumed", run))
    said = [f"{what}: {'equal' if equal else 'DIFFERENT'}" for what, equal in found.items()]
    print(f"{run.name:30}", *said, flush=True)
    return all(found.values())


if __name__ == "__main__":
    listed = {run.name: run for run in read_suite(_LIST)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--only", nargs="+", choices=listed, default=list(listed), help="some of the runs")
    parser.add_argument("--keep", type=Path, help="keep the first checkout's runs there, for the next comparison")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kept = (given.keep or Path(scratch, "before")).resolve()
        before, after = given.before.resolve(), given.after.resolve()
        results = [same(before, after, listed[name], kept, Path(scratch)) for name in given.only]
    raise SystemExit(not all(results))
