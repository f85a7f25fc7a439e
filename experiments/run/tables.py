"""Tables, from the same rows on the screen and as Markdown."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

from rich import box
from rich.console import Console
from rich.table import Table

NOTHING = "–"
"""A cell without a value."""

_SHORT = 14
"""A longer heading is folded, as far as the cells below it allow."""

_WORDS = 45
"""Words of a longer cell are folded; numbers never."""


def show(headings: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[str] = (), title: str = "") -> None:
    """Print a table as wide as it needs: a narrow terminal folds its lines, nothing is cut off.

    A line break folds a heading. Columns whose heading is among ``words`` go to the left; all others are numbers.
    """
    rows = list(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        width = _width(heading, [row[number] for row in rows])
        if heading in words:
            table.add_column(heading, width=min(width, _WORDS))
        else:
            table.add_column(heading, width=width, justify="right")
    for row in rows:
        table.add_row(*row)
    if title:
        print(title)
    Console(width=Console(width=10_000).measure(table).maximum).print(table)


def _width(heading: str, cells: Iterable[str]) -> int:
    return max(map(len, [*cells, *heading.split(), *(line[:_SHORT] for line in heading.splitlines())]), default=1)


def markdown_lines(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table, each as soon as its row is there."""
    titles = [heading.replace("\n", ", ") for heading in headings]
    for cells in chain([titles, ["---"] * len(titles)], rows):
        yield "| " + " | ".join(cells) + " |"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table as Markdown. Own code, four lines: pandas' needs one more package and pads every cell."""
    return "\n".join(markdown_lines(headings, rows))
