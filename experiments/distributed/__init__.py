"""Several processes: strategies, and hooks that average compressed gradients."""

from models.networks.by_name import by_name

__getattr__, __dir__ = by_name(__name__, __path__)
