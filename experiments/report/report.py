"""``report``: one table and two pictures over finished runs."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from experiments.report.columns import cells_of
from experiments.report.rows import Row, group
from experiments.report.runs import find_runs
from experiments.run import tables


def report(paths: Sequence[Path], output: Path) -> None:
    """Print tables of the finished runs in some folders; write ``report.md``, ``.csv``, ``.png`` and ``cost.png``.

    Raises:
        RunError: there is no finished run.
    """
    runs = find_runs(paths)
    rows = group(runs)
    title, parts = cells_of(rows)
    note = _note(rows, repeated=len(runs) - sum(len(row.runs) for row in rows))
    print(title)
    _print(parts)
    print(note)
    output.mkdir(parents=True, exist_ok=True)
    table = pd.concat(parts.values(), axis=1)
    table.to_csv(output / "report.csv", index=False)
    text = tables.markdown([*table.columns], table.to_numpy())
    (output / "report.md").write_text(f"{title}\n\n{text}\n\n{note}\n")
    from experiments.report.pictures import draw, draw_cost  # takes a second: the tables are there by then

    who = parts["who"].to_dict("records")
    draw(rows, who, title, output / "report.png")
    draw_cost(rows, who, title, output / "cost.png")
    print(f"Table:      {output / 'report.md'}\nPictures:   {output / 'report.png'}, {output / 'cost.png'}")
    print(f"To watch:   tensorboard --logdir {os.path.commonpath(paths) or '.'}")


def _note(rows: Sequence[Row], repeated: int) -> str:
    """What the reader of the table must know."""
    sentences = ["Test split; speed as it was on the machine at that time."]
    if any(row.base for row in rows):
        base = "Backprop of the same network, data and batch size"
        if sum(row.first["method"] == "Backprop" for row in rows) > 1:
            base += " (of several, the one of as many epochs that shares most settings)"
        labelled = all("test/top1" in row.mean for row in rows if row.base)
        unlabelled = "" if labelled else "; of a method without labels, to its own run with one block"
        sentences.append(f"(×…) is the ratio to {base}{unlabelled}.")
    if any(row.in_turn for row in rows):
        sentences.append(
            "Where blocks learn one after the other, epochs are those of all blocks, images/s of one block."
        )
    if repeated:
        sentences.append(f"Of runs of the same setting and seed only the last by name counts: {repeated} left out.")
    return " ".join(sentences)


def _print(parts: Mapping[str, pd.DataFrame]) -> None:
    """Predictions, probes, costs in a table each: side by side they would not fit a terminal."""
    for part in (parts["predictions"], parts["probes"], parts["costs"]):
        known = (part != tables.NOTHING).any(axis=1)
        if known.any():
            lines = pd.concat([parts["who"], part], axis=1)[known]
            tables.show([*lines.columns], lines.to_numpy(), words=("method", "network", "data"))
