"""Methods: one LightningModule per file, on one common loop (``local_learning.py``).

They are imported when first asked for, so that ``models.networks`` works without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.backprop import Backprop
    from models.blockwise_ssl import BlockwiseSSL, CollapsedError
    from models.closed_form import ClosedFormMLP
    from models.decoupled_greedy import DecoupledGreedy
    from models.difficulty import Difficulty
    from models.feature_store import FeatureStore, FeatureStoreError
    from models.infopro import InfoPro
    from models.layerwise import Layerwise
    from models.local_learning import LocalLearning, NonFiniteLossError, UnsupportedError
    from models.loco import LoCo
    from models.method import Method
    from models.neuron_groups import NeuronGroups
    from models.optimizers import BlockLARS
    from models.predsim import PredSim
    from models.regularization import Regularization

_HOMES = {
    "Backprop": "models.backprop",
    "BlockLARS": "models.optimizers",
    "BlockwiseSSL": "models.blockwise_ssl",
    "ClosedFormMLP": "models.closed_form",
    "CollapsedError": "models.blockwise_ssl",
    "DecoupledGreedy": "models.decoupled_greedy",
    "Difficulty": "models.difficulty",
    "FeatureStore": "models.feature_store",
    "FeatureStoreError": "models.feature_store",
    "InfoPro": "models.infopro",
    "Layerwise": "models.layerwise",
    "LoCo": "models.loco",
    "LocalLearning": "models.local_learning",
    "Method": "models.method",
    "NeuronGroups": "models.neuron_groups",
    "NonFiniteLossError": "models.local_learning",
    "Regularization": "models.regularization",
    "PredSim": "models.predsim",
    "UnsupportedError": "models.local_learning",
}
__all__ = [
    "Backprop",
    "BlockLARS",
    "BlockwiseSSL",
    "ClosedFormMLP",
    "CollapsedError",
    "DecoupledGreedy",
    "Difficulty",
    "FeatureStore",
    "FeatureStoreError",
    "InfoPro",
    "Layerwise",
    "LoCo",
    "LocalLearning",
    "Method",
    "NeuronGroups",
    "NonFiniteLossError",
    "PredSim",
    "Regularization",
    "UnsupportedError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"models has no {name!r}; it has {', '.join(_HOMES)}.")
    return getattr(import_module(_HOMES[name]), name)
