"""``suite``: run a list or grid of configs, each in a process of its own, then report."""

import argparse
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from experiments.named_configs import config_file, config_path
from experiments.run.errors import RunError
from experiments.run.files import LAST, SUMMARY
from experiments.run.folder import PART_OF_SUITE, plain_name
from experiments.run.limited_yaml import read_yaml
from experiments.run.reading import read_summary

FaultOf = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True)
class Run:
    """One run of a suite: the name of its folder, its YAML, the options on top of it, the YAML of a probe after it."""

    name: str
    config: Path
    options: tuple[str, ...]
    probe: Path | None = None


def read_suite(path: Path) -> list[Run]:
    """Read a suite file.

    It holds ``runs``, a list of ``{config, name?, options?, grid?, probe?}``: ``config`` and ``probe`` are files
    relative to the suite file, or names of configs that come along; ``options`` maps option → value, ``grid`` maps
    option → values; a grid stands for one run per combination. In an option, ``$max_epochs`` is what the grid gives
    ``trainer.max_epochs``.

    Raises:
        RunError: the file is not of that form, has no runs, or two of one name.
    """
    content = read_yaml(path)
    try:
        runs = [run for entry in content["runs"] for run in _expand(path.parent, entry)]
    except (KeyError, TypeError, AttributeError) as fault:
        raise RunError(
            f"{path} is not a suite: it must hold 'runs', a list of {{config, options, grid, probe}} ({fault!r})."
        ) from fault
    unknown = [key for key in content if key != "runs" and not str(key).startswith("_")]  # _names hold what is shared
    if unknown or not runs:
        raise RunError(f"{path} is not a suite: {f'it holds {unknown[0]!r}' if unknown else 'it has no runs'}.")
    names = [run.name for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RunError(
            f"{path} has two runs named {', '.join(sorted(twice))}: give one a name of its own, as name: NAME."
        )
    return runs


_KEYS = ("config", "name", "options", "grid", "probe")


def _expand(folder: Path, entry: Mapping[str, Any]) -> Iterator[Run]:
    if unknown := set(entry) - set(_KEYS):
        raise RunError(
            f"A run of a suite has {', '.join(_KEYS)}, not {', '.join(sorted(unknown))}: "
            "command-line options go under options."
        )
    config = config_path(entry["config"], folder).resolve()
    probe = config_path(entry["probe"], folder).resolve() if "probe" in entry else None
    name = entry.get("name", f"{config.parent.name}-{config.stem}")
    grid = entry.get("grid", {})
    if empty := [option for option, values in grid.items() if not values]:
        raise RunError(f"The grid of {name} has no values of {empty[0]}.")
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        suffix = "".join(f"-{option.rpartition('.')[2]}{value}" for option, value in chosen.items()).replace("/", "_")
        options = entry.get("options", {}) | chosen
        given = {option.rpartition(".")[2]: value for option, value in chosen.items()}
        line = tuple(Template(f"--{key}={value}").safe_substitute(given) for key, value in options.items())
        yield Run(plain_name(name + suffix), config, line, probe)


def suite(path: Path, runs: Path, extra: Sequence[str], fault_of: FaultOf) -> None:
    """Run what is not finished, go on with what was cut off, then report on all, in ``runs/<name of the suite>``.

    Every run gets the ``extra`` options. Nothing is started before ``fault_of`` found no mistake in any command line.

    Raises:
        RunError: the suite cannot be read, an option belongs to a single run or is mistyped, or runs failed (the
            others were run all the same).
    """
    if clash := [option for option in extra if re.match(r"--(name|config|runs|ckpt_path)\b", option)]:
        raise RunError(f"{clash[0]} belongs to one run: a suite names its runs, and resumes them, itself.")
    folder = runs / plain_name(path.stem)
    planned = read_suite(path)
    for run in planned:
        for command, *options in _commands(run, folder, extra):
            # There may be no config of the run yet.
            before = ["--config", str(run.config), *run.options, *extra] if command == "probe" else []
            if fault := fault_of([command, *before, *options]):
                raise RunError(f"Nothing was started, because of {run.name}: {fault}")
    failed = []
    for number, run in enumerate(planned, start=1):
        commands = _commands(run, folder, extra)
        print(f"[{number}/{len(planned)}] {run.name}{'' if commands else ': finished before'}", flush=True)
        if not all(map(_succeeds, commands)):  # none after the first that fails
            failed.append(run.name)
    if finished := [folder / run.name for run in planned if (folder / run.name / SUMMARY).is_file()]:
        from experiments.report.report import report  # pandas takes a second

        report(finished, folder)
    if failed:
        raise RunError(f"{len(failed)} of {len(planned)} runs failed: {', '.join(failed)}. Their messages are above.")


def _commands(run: Run, folder: Path, extra: Sequence[str]) -> list[list[str]]:
    """What is still to be done for a run: nothing, the probe, or both."""
    run_folder = folder / run.name
    fit = ["fit", "--config", str(run.config), "--runs", str(folder), "--name", run.name, *run.options, *extra]
    probe = [["probe", "--config", str(run.probe), "--checkpoint", str(run_folder)]] if run.probe else []
    if (run_folder / SUMMARY).is_file():
        probed = any(name.startswith("probe_lin") for name in read_summary(run_folder / SUMMARY)["metrics"])
        return [] if probed else probe
    if (run_folder / LAST).is_file():
        return [[*fit, "--ckpt_path=last"], *probe]
    return [fit, *probe]


def _succeeds(command: Sequence[str]) -> bool:
    """Run a command in a process of its own."""
    print(shlex.join(["local-learning", *command]), flush=True)
    line = [sys.executable, "-m", "experiments", *command]
    return subprocess.run(line, check=False, env=os.environ | {PART_OF_SUITE: "1"}).returncode == 0


def main(args: Sequence[str], fault_of: FaultOf) -> None:
    """Run :func:`suite` by what follows it on the command line; Ctrl-C stops it."""
    parser = argparse.ArgumentParser(
        "local-learning suite",
        description="Run a list or grid of configs, each in a process of its own, then report. Finished runs are "
        "skipped, cut-off ones resumed. Other options (--trainer.max_epochs 5) go to every run.",
        epilog="The YAML: runs: [{config: FILE, name: NAME, options: {OPTION: VALUE}, grid: {OPTION: [VALUE, ...]}, "
        "probe: FILE}]",
    )
    parser.add_argument("suite", help="the suite's YAML, or the name of one that comes along, such as suites/demo")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all run folders")
    known, extra = parser.parse_known_args(args)
    try:
        suite(config_file(known.suite), known.runs, extra, fault_of)
    except KeyboardInterrupt as stop:
        print("\nStopped. The same suite command goes on where it stopped.")
        raise SystemExit(128 + signal.SIGINT) from stop
