"""Methods: one LightningModule per file, on one common loop (``local_learning.py``)."""

from models.backprop import Backprop
from models.decoupled_greedy import DecoupledGreedy
from models.local_learning import LocalLearning, NonFiniteLossError, UnsupportedError

__all__ = ["Backprop", "DecoupledGreedy", "LocalLearning", "NonFiniteLossError", "UnsupportedError"]
