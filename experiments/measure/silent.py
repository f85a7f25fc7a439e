"""A Trainer that shows and writes nothing: for what is measured, and for controls beside a run."""

from typing import Any

import lightning.pytorch as L


def silent_trainer(**options: Any) -> L.Trainer:
    """Lightning's Trainer on one device, without bar, summary, checkpoints, and validation.

    Args:
        options: more arguments of the Trainer, or others in place of these.
    """
    silent = {
        "devices": 1,
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**(silent | options))
