"""Methods: one LightningModule per file, on one common loop (``local_learning.py``).

They are imported when first asked for, so that ``models.networks`` works without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.backprop import Backprop
    from models.blockwise_ssl import BlockwiseSSL, CollapsedError
    from models.decoupled_greedy import DecoupledGreedy
    from models.difficulty import Difficulty
    from models.infopro import InfoPro
    from models.local_learning import LocalLearning, NonFiniteLossError, UnsupportedError
    from models.loco import LoCo
    from models.neuron_groups import NeuronGroups
    from models.optimizers import BlockLARS

_HOMES = {
    "Backprop": "models.backprop",
    "BlockLARS": "models.optimizers",
    "BlockwiseSSL": "models.blockwise_ssl",
    "CollapsedError": "models.blockwise_ssl",
    "DecoupledGreedy": "models.decoupled_greedy",
    "Difficulty": "models.difficulty",
    "InfoPro": "models.infopro",
    "LoCo": "models.loco",
    "LocalLearning": "models.local_learning",
    "NeuronGroups": "models.neuron_groups",
    "NonFiniteLossError": "models.local_learning",
    "UnsupportedError": "models.local_learning",
}
__all__ = [
    "Backprop",
    "BlockLARS",
    "BlockwiseSSL",
    "CollapsedError",
    "DecoupledGreedy",
    "Difficulty",
    "InfoPro",
    "LoCo",
    "LocalLearning",
    "NeuronGroups",
    "NonFiniteLossError",
    "UnsupportedError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"models has no {name!r}; it has {', '.join(_HOMES)}.")
    return getattr(import_module(_HOMES[name]), name)
