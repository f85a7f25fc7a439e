"""Whatever is typed or written: it trains, or ends in one sentence with exit code 2, and leaves nothing behind.

``FUZZ_CASES=2000 FUZZ_SEED=3 pytest -n 0 tests/experiments/test_fuzz.py`` tries more, and others.
"""

import math
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import yaml
from helpers import EXPERIMENTS
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher

from experiments.cli import main
from experiments.distributed.ddp import Launcher
from losses.errors import UsageError

CASES, SEED = int(os.environ.get("FUZZ_CASES", 60)), int(os.environ.get("FUZZ_SEED", 12))
DIGITS = [path for path in EXPERIMENTS if path.stem.startswith("digits")]
COMMANDS = ["fit"] * 30 + ["cost", "validate", "predict", "probe", "observe", "fitt", ""]

SHORT = [f"--trainer.limit_{split}_batches=1" for split in ("train", "val", "test")]

NUMBERS = [-1, 0, 1, 2, 3, 7, 100, 0.1, 0.5, -0.5, 1.5, math.nan, math.inf, -math.inf, 1e-30, 1e30, 10**12, 2**63]
WORDS = [
    *("", " ", "x", "last", "none", "../x", "a\0b", "a\nb", "ünï-ço∂é", "\ud800", "𝄞", "[", "{a: b", "*a", "1e400"),
    *("torch.nn.MSELoss", "torch.nn.Linear", "torch.optim.LBFGS", "torch.optim.Adam", "torch.optim.SparseAdam"),
    *("torch.optim.lr_scheduler.ReduceLROnPlateau", "torch.optim.lr_scheduler.StepLR", "lightly.loss.DINOLoss"),
    *("os.getcwd", "builtins.print", "nowhere.Nothing", "models", "models.Backprop", "models.LoCo", "models.Layerwise"),
    *("models.networks.MLP", "models.networks.AuxHead", "models.networks.ConvHead", "datamodules.Checkerboard"),
    *("losses.ExpGB", "experiments.callbacks.InfoBatch", "experiments.distributed.CompressedDDP", "ddp", "fsdp"),
]
NODES: list[Any] = [[], {}, [[]], [0], [-1], [1, 2, 3], {"a": 1}, {1: 2}, {None: None}, [None], [{"class_path": "x"}]]
STRANGE = [None, True, False, *NUMBERS, *WORDS, *NODES]
DAMAGE = [b"\0", b"\xff", b"\t", b"\xe9", b"*a", b"&a ", b"[" * 3000, b"!!x "]


@cache
def options_of(config: Path) -> dict[str, Any]:
    """All options of a config, with their defaults."""
    text = StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit):
        main(["fit", f"--config={config}", "--print_config"])
    return yaml.safe_load(text.getvalue())


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Where something stands in a configuration, and what."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield (*path, key), value
        yield from places(value, (*path, key))


def like(value: Any) -> list[Any]:
    """What is of the same kind as a value, if there is such a thing: only its range is wrong then."""
    kinds = {bool: [True, False], int: NUMBERS, float: NUMBERS, str: WORDS, list: NODES, dict: NODES}
    return kinds.get(type(value), STRANGE)


def somewhere(options: dict[str, Any], draw: random.Random) -> tuple[tuple[Any, ...], Any]:
    """A place, mostly one that holds a number, and something to put there."""
    found = list(places(options))
    numbers = [(path, value) for path, value in found if type(value) in (int, float)]
    path, value = draw.choice(numbers if draw.random() < 0.4 else found)
    return path, deepcopy(draw.choice(like(value) if draw.random() < 0.8 else STRANGE))


def change(options: dict[str, Any], draw: random.Random) -> None:
    """Change one thing, anywhere."""
    (*path, key), strange = somewhere(options, draw)
    holder = options
    for step in path:
        holder = holder[step]
    kind = draw.choice(["replace"] * 7 + ["remove", "misspell", "double"])
    if kind == "replace":
        holder[key] = strange
    elif kind == "double":
        holder[key] = [holder[key], deepcopy(holder[key])]
    else:
        value = holder.pop(key)
        if kind == "misspell" and isinstance(holder, dict):
            holder[f"{key}{draw.choice('xs_ .')}"] = value


def damage(text: bytes, draw: random.Random) -> bytes:
    """Change the bytes of a file."""
    at, kind = draw.randrange(len(text)), draw.randrange(5)
    lines = text.splitlines(keepends=True)
    line = draw.randrange(len(lines))
    return [
        lambda: text[:at],
        lambda: text[:at] + draw.choice(DAMAGE) + text[at:],
        lambda: b"".join([*lines[:line], lines[line], *lines[line:]]),
        lambda: b"".join([*lines[:line], *lines[line + 1 :]]),
        lambda: text.decode().encode("utf-16"),
    ][kind]()


def typed(options: dict[str, Any], draw: random.Random) -> list[str]:
    """A few options of a command line, of which something is wrong."""
    words = []
    for _ in range(draw.choice([0, 0, 0, 1, 2])):
        place, value = somewhere(options, draw)
        path = [str(step) for step in place if step not in ("init_args", "class_path")]
        name = ".".join(path) + draw.choice([""] * 8 + ["x", ".", "+"])
        words.append(f"--{name}={value}" if draw.random() < 0.9 else f"--{name}")
    return [word for word in words if "\0" not in word]  # which no process can be given


class Hangs(BaseException):
    """A command did not end in time."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Stop what hangs."""

    def hangs(*_: object) -> None:
        raise Hangs(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def start_none(*_: object, **__: object) -> None:
    """Instead of other processes: they would run pytest's command line."""
    raise UsageError("It would start other processes.")


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No other processes are started, and options that hold for all of this one are taken back."""
    for launcher in (Launcher, _SubprocessScriptLauncher, _MultiProcessingLauncher):
        monkeypatch.setattr(launcher, "launch", start_none)
    yield
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    torch.backends.cudnn.benchmark = False


def case(config: Path, draw: random.Random) -> list[str]:
    """A command line, whose config is written."""
    options, command = deepcopy(options_of(draw.choice(DIGITS))), draw.choice(COMMANDS)
    for _ in range(draw.choice([0, 1, 1, 2])):
        change(options, draw)
    text = yaml.safe_dump(options).encode()
    config.write_bytes(damage(text, draw) if draw.random() < 0.1 else text)
    short = ["--trainer.fast_dev_run=true"] if draw.random() < 0.7 else ["--trainer.max_epochs=1", *SHORT]
    return [command, f"--config={config}", *typed(options, draw), "--runs=runs", *short]


def require_a_sentence(code: int, said: str) -> None:
    """Nothing, or one sentence and exit code 2."""
    assert code in (0, 2), said
    assert sum(line.startswith("error: ") for line in said.splitlines()) == bool(code), said


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    said = StringIO()
    with redirect_stdout(StringIO()), redirect_stderr(said), limited(20), patch.dict(os.environ):
        try:
            main(arguments)
        except SystemExit as stop:
            return (stop.code if isinstance(stop.code, int) else 0), said.getvalue()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    return 0, said.getvalue()


def test_whatever_is_asked_trains_or_is_told_in_a_sentence(tmp_path_factory, monkeypatch, one_process):
    folder = tmp_path_factory.mktemp("fuzz")
    monkeypatch.chdir(folder)

    @seed(SEED)
    @settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=True))
    def tried(draw: random.Random) -> None:
        config = folder / "config.yaml"
        arguments = case(config, draw)
        code, said = run(arguments)
        config.unlink()
        require_a_sentence(code, said)
        assert not (code and list(folder.rglob("*"))), "a refused command left files behind"
        shutil.rmtree(folder / "runs", ignore_errors=True)
        assert not list(folder.iterdir()), "files beside the runs"

    tried()
