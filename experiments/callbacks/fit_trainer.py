"""The Trainer as callbacks of a fit find it."""

import lightning.pytorch as L

from datamodules.base import ImageDataModule


class FitTrainer(L.Trainer):
    """For type checkers only: attributes that Lightning's Trainer has in a fit, set where checkers do not look."""

    datamodule: ImageDataModule
    fast_dev_run: int
    log_every_n_steps: int
    max_epochs: int
