"""The benchmark of the input."""

import re
import sys
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from experiments.studies import input as study

DATA = Path(__file__).parents[3] / "docs" / "data.md"


def table(capsys, monkeypatch, *options):
    """The cells behind each row's name."""
    monkeypatch.setattr(sys, "argv", ["input", "--size=16", "--repetitions=1", *options])
    threads = torch.get_num_threads()
    study.main()
    torch.set_num_threads(threads)
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    return {name: cells for name, *cells in lines[2:]}


def test_says_how_many_workers_a_gpu_needs(capsys, monkeypatch):
    command = re.search(r"^python -m experiments.studies.input (--gpu \d+)", DATA.read_text(), re.MULTILINE)[1]
    gpu = int(command.split()[1])
    found = table(capsys, monkeypatch, "--count=3", *command.split())
    assert [*found][3:5] == ["pair, by lightly", "pair, cropped"]
    for name in ("decode, random crop", "pair, by lightly", "pair, cropped"):
        rate, workers, _ = found[name]
        rounded = int(rate.replace(",", ""))
        assert ceil(gpu / (rounded + 0.5)) <= int(workers) <= ceil(gpu / (rounded - 0.5))
    assert found["decode"][1:] == found["pair, coloured on the device"][1:] == ["–", "–"]


def test_measures_ones_own_files(capsys, monkeypatch, tmp_path):
    generator = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(generator.integers(256, size=(40, 30, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(study, "write_photos", None)
    found = table(capsys, monkeypatch, f"--images={tmp_path}")
    assert all(re.fullmatch(r"[\d,]+", cells[0]) for cells in found.values())
