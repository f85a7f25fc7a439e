"""What watches a run: checkpoints, speed and memory, progress, TensorBoard, online probes."""

from experiments.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from experiments.callbacks.loggers import RunCSVLogger, RunTensorBoardLogger
from experiments.callbacks.meter import Meter
from experiments.callbacks.online_probe import OnlineProbe
from experiments.callbacks.predictions import PredictionsFile
from experiments.callbacks.progress import BlockProgressBar, CutTable, EpochLines
from experiments.callbacks.tensorboard import TensorBoardPage

__all__ = [
    "BestCheckpoint",
    "BlockProgressBar",
    "CutTable",
    "EpochLines",
    "LastCheckpoint",
    "Meter",
    "OnlineProbe",
    "PredictionsFile",
    "RunCSVLogger",
    "RunTensorBoardLogger",
    "TensorBoardPage",
]
