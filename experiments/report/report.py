"""``report``: one table and two pictures over finished runs."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.report.columns import COSTS, columns, figure_columns
from experiments.report.pictures import draw, draw_cost
from experiments.report.rows import Row, find_summaries, group


def report(paths: Sequence[Path], output: Path) -> None:
    """Print a table of finished runs; write ``report.md``, ``report.csv``, ``report.png`` and ``cost.png``.

    Args:
        paths: run folders, or folders of them.
        output: folder for the files.

    Raises:
        RunError: there is no finished run.
    """
    summaries = find_summaries(paths)
    rows = group(summaries)
    shared, cells = columns(rows)
    note = _note(rows, repeated=len(summaries) - sum(len(row.summaries) for row in rows))
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
    print(f"To watch:   tensorboard --logdir {os.path.commonpath(paths) or '.'}")


def _note(rows: Sequence[Row], repeated: int) -> str:
    """What the reader of the table must know."""
    sentences = ["Test split; speed as it was on the machine at that time."]
    if any(row.base for row in rows):
        base = "Backprop of the same network, data and batch size"
        if sum(row.first["method"] == "Backprop" for row in rows) > 1:
            base += " (of several, the one of as many epochs that shares most settings)"
        labelled = all(row.values("test/top1") for row in rows if row.base)
        unlabelled = "" if labelled else "; of a method without labels, to its own run with one block"
        sentences.append(f"(×…) is the ratio to {base}{unlabelled}.")
    if any(row.in_turn for row in rows):
        sentences.append(
            "Where blocks learn one after the other, epochs are those of all blocks, images/s of one block."
        )
    if repeated:
        sentences.append(f"Of runs of the same setting and seed only the last by name counts: {repeated} left out.")
    return " ".join(sentences)


_WORDS = ("method", "network", "data")
"""Columns of words: to the left, and folded where they are long."""


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
        for heading, column in zip([*who, *headings], zip(*lines, strict=True), strict=True):
            width = max(map(len, [*column, *heading.split()]))  # a heading of several words is folded
            words = heading in _WORDS
            table.add_column(heading, justify="left" if words else "right", width=min(width, 45) if words else width)
        for line in lines:
            table.add_row(*line)
        console = Console()
        unlimited = console.options.update(max_width=10_000)  # what is cut off to fit is lost; a terminal folds
        Console(width=console.measure(table, options=unlimited).maximum).print(table)
    print(note)
