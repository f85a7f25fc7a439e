"""What watches a run, and what leaves training images out of it."""

from experiments.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from experiments.callbacks.data_filters import DataFilter, DropConfident, InfoBatch
from experiments.callbacks.decision_boundary import DecisionBoundary
from experiments.callbacks.entropy import Entropy, Initialisation
from experiments.callbacks.hidden_layers import HiddenLayers
from experiments.callbacks.loggers import RunCSVLogger, RunTensorBoardLogger
from experiments.callbacks.meter import Meter
from experiments.callbacks.online_probe import OnlineProbe
from experiments.callbacks.output_signal import OutputSignal
from experiments.callbacks.predictions import PredictionsFile
from experiments.callbacks.progress import BlockProgressBar, CutTable, EpochLines
from experiments.callbacks.tensorboard import TensorBoardPage
from experiments.callbacks.training_accuracy import TrainingAccuracy

__all__ = [
    "BestCheckpoint",
    "BlockProgressBar",
    "CutTable",
    "DataFilter",
    "DecisionBoundary",
    "DropConfident",
    "Entropy",
    "EpochLines",
    "HiddenLayers",
    "InfoBatch",
    "Initialisation",
    "LastCheckpoint",
    "Meter",
    "OnlineProbe",
    "OutputSignal",
    "PredictionsFile",
    "RunCSVLogger",
    "RunTensorBoardLogger",
    "TensorBoardPage",
    "TrainingAccuracy",
]
