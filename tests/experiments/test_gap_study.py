"""The gap to backpropagation against FLOPs: rows, costs, intervals, the picture."""

import json
import shutil
from math import sqrt

import numpy as np
import pandas as pd
import pytest
from helpers import summary

from experiments.run.errors import RunError
from experiments.studies.gap_against_flops import main, points


def line(name, top1, level="A", step_flops=1.0, steps=200, batch=2000):
    known = {"name": name, "level": level, "step_flops": step_flops, "global_step": steps, "batch_size": batch}
    return known | {"test/top1": top1}


RUNS = pd.DataFrame(
    [
        *(line(f"backprop-seed_everything{seed}", top1, "D") for seed, top1 in enumerate((0.90, 0.91, 0.92))),
        *(line(f"local-seed{seed}", top1, step_flops=1.15) for seed, top1 in enumerate((0.89, 0.90, 0.94))),
        line("twice", 0.88, "B", step_flops=1.5, steps=400),
        line("halves", 0.88, "C(1)", steps=400, batch=1000),
    ]
)


def test_rows_are_seeds_of_one_name_and_cost_what_they_see():
    found = {point.name: point for point in points(RUNS)}
    assert {name: (p.seeds, p.cost, p.level) for name, p in found.items()} == {
        "backprop": (3, 1.0, "D"),
        "local": (3, pytest.approx(1.15), "A"),
        "twice": (1, pytest.approx(3.0), "B"),
        "halves": (1, pytest.approx(1.0), "C(1)"),
    }
    assert found["local"].gap == pytest.approx(0.0, abs=1e-9)
    assert found["twice"].gap == pytest.approx(3.0)


def test_intervals_are_welchs_or_those_of_proportions():
    found = {point.name: point for point in points(RUNS)}
    a, b = np.array([90, 91, 92]), np.array([89, 90, 94])
    va, vb = a.var(ddof=1) / 3, b.var(ddof=1) / 3
    freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 2)
    assert 2.5 < freedom < 2.9
    assert 2.9 * sqrt(va + vb) < found["local"].half_width < 3.8 * sqrt(va + vb)  # t at 0.975 of as many degrees
    assert found["twice"].half_width == pytest.approx(1.96 * sqrt((91 * 9 + 88 * 12) / 10_000))
    assert found["backprop"].half_width == 0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(RunError, match="No run is called backprop"):
        points(RUNS[3:])
    with pytest.raises(RunError, match="run them anew"):
        points(RUNS.drop(columns="step_flops"))


def test_finished_runs_are_drawn(finished, tmp_path, capsys):
    """A run says what its step costs: heads are work."""
    for name, flops in (("backprop", 1.0), ("local-seed0", None)):
        folder = shutil.copytree(finished, tmp_path / name)
        said = summary(folder) | {"name": name}
        assert said["step_flops"] > 1
        (folder / "summary.json").write_text(json.dumps(said | ({"step_flops": flops} if flops else {})))
    main([str(tmp_path)])
    assert "+0.00 ± " in capsys.readouterr().out
    assert (tmp_path / "gap_against_flops.png").stat().st_size > 10_000


def test_a_fault_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "nothing")])
    assert (stop.value.code, "There is no run" in capsys.readouterr().err) == (2, True)
