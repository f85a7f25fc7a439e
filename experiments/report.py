"""``report``: one table and two pictures over finished runs."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.report_pictures import draw, draw_cost
from experiments.report_rows import COSTS, columns, figure_columns, find_summaries, group


def report(paths: Sequence[Path], output: Path) -> None:
    """Print a table of finished runs; write ``report.md``, ``report.csv``, ``report.png`` and ``cost.png``.

    Args:
        paths: run folders, or folders of them.
        output: folder for the files.

    Raises:
        RunError: there is no finished run.
    """
    rows = group(find_summaries(paths))
    shared, cells = columns(rows)
    note = "Test split; speed as it was on the machine at that time."
    if any(row.base for row in rows):
        note += " (×…) is the ratio to Backprop of the same network, data, epochs and batch size"
        labelled = all(row.values("test/top1") for row in rows if row.base)
        note += "." if labelled else "; of a method without labels, to its own run with one block."
    _print(cells, list(figure_columns(rows)), shared, note)
    output.mkdir(parents=True, exist_ok=True)
    lines = list(zip(*cells.values(), strict=True))
    markdown = [list(cells), ["---"] * len(cells), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in markdown)
    (output / "report.md").write_text(f"{shared}\n\n{text}\n\n{note}\n")
    with (output / "report.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(cells), *lines])
    picture = output / "report.png"
    draw(rows, shared, picture)
    draw_cost(rows, shared, output / "cost.png")
    print(f"Table:      {output / 'report.md'}\nPictures:   {picture}, {output / 'cost.png'}")
    print(f"To watch:   tensorboard --logdir {os.path.commonpath(paths)}")


def _print(cells: Mapping[str, Sequence[str]], figures: Sequence[str], title: str, note: str) -> None:
    """Predictions, probes, costs in a table each: side by side they would not fit a terminal."""
    who = [heading for heading in cells if heading not in figures]
    probes = [heading for heading in figures if heading.startswith(("linear probe", "kNN"))]
    predictions = [heading for heading in figures if heading not in (*probes, *COSTS)]
    groups = [[heading for heading in group if heading in cells] for group in (predictions, probes, COSTS)]
    print(title)
    for headings in groups:
        lines = zip(*(cells[heading] for heading in [*who, *headings]), strict=True)
        lines = [line for line in lines if any(cell not in ("–", "") for cell in line[len(who) :])]
        if not lines:
            continue
        table = Table(box=box.SIMPLE_HEAD)
        for heading in [*who, *headings]:
            words = heading in ("method", "network", "data")
            width = min(max(map(len, cells[heading])), 60 if words else 30)  # headings wrap, cells only if they must
            table.add_column(heading, justify="left" if words else "right", min_width=width, max_width=60)
        for line in lines:
            table.add_row(*line)
        Console(width=max(130, Console().width)).print(table)
    print(note)
