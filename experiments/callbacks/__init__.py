"""What watches a run, and what leaves training images out of it: one callback a file."""

from models.networks.by_name import by_name

__getattr__, __dir__ = by_name(__name__, __path__)
