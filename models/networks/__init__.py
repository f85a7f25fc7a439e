"""Plain torch: networks as chains of units, the cut into blocks, the heads. Knows no Lightning."""

from models.networks.by_name import by_name

__getattr__, __dir__ = by_name(__name__, __path__)
