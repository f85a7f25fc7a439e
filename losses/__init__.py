"""Local losses and what judges predictions: pure functions on tensors. They know only torch.

Barlow Twins, NT-Xent and VICReg come from lightly: ``lightly.loss``. Names are looked up here when they are asked for,
because ``losses.errors`` needs no torch, and commands that need none either shall start quickly.
"""

import pkgutil
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """A public function or class, from whichever file it is in."""
    for file in pkgutil.iter_modules(__path__, f"{__name__}.") if not name.startswith("_") else ():
        if name in vars(module := import_module(file.name)):
            return vars(module)[name]
    raise AttributeError(f"losses has no {name!r}.")
