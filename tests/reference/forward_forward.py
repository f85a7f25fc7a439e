"""Forward-Forward pixel by pixel: how a hybrid's mask is made of random bits."""


def blurred(bits, times):
    """Rows of numbers, of which each becomes a quarter of both neighbours and half of itself, along both axes."""
    for _ in range(times):
        bits = _along_rows(_turned(_along_rows(_turned(bits))))
    return bits


def _along_rows(rows):
    beyond = [[row[0], *row, row[-1]] for row in rows]
    return [[(a + 2 * b + c) / 4 for a, b, c in zip(row, row[1:], row[2:], strict=False)] for row in beyond]


def _turned(rows):
    return [list(column) for column in zip(*rows, strict=True)]
