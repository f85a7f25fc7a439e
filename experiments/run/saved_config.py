"""``config.yaml`` of a run: when it is written, and what a resumed run changed in it."""

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from experiments.run.files import CONFIG
from experiments.run.reading import read_config
from experiments.run.settings import settings
from experiments.run.written import in_one_move

AS_PARSED = {"skip_unset": False, "skip_validation": True}
"""How a parsed configuration is dumped: with its nulls, and not checked again."""


class SavedConfig(SaveConfigCallback):
    """Writes ``config.yaml`` without what belongs to one call only, so that it runs again as it is.

    A new run has it from its first step on. That of a resumed run is replaced when a step has succeeded: a resume
    that is refused, or cannot take a step, leaves the run as it was.
    """

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Nothing yet, unlike Lightning's: the method may still refuse."""

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Name the settings that differ from those of the run that goes on."""
        asked = self.config.get("ckpt_path")
        if asked and trainer.is_global_zero:
            file = Path(asked).absolute().parent.parent / CONFIG
            before = read_config(file) if file.is_file() else {}
            if before and (changed := changes(before, self._lasting())):
                print(
                    f"note: resumed with other settings than before: {', '.join(changed)}. "
                    "Optimizers and schedules go on with the checkpoint's: rates stay where a schedule had ended.",
                    file=sys.stderr,
                )

    @override
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write that of a new run."""
        if not (Path(trainer.default_root_dir) / CONFIG).exists():
            self.save_config(trainer)

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write that of a resumed run."""
        self.save_config(trainer)

    @override
    def save_config(self, trainer: L.Trainer, *_: Any) -> None:
        """Once."""
        if trainer.is_global_zero and not self.already_saved:
            with in_one_move(Path(trainer.default_root_dir) / CONFIG) as part:
                part.write_text(yaml.safe_dump(self._lasting(), sort_keys=False))
            self.already_saved = True

    def _lasting(self) -> dict[str, Any]:
        """The configuration without what belongs to one call."""
        config = yaml.safe_load(self.parser.dump(self.config, **AS_PARSED))
        return {key: value for key, value in config.items() if key not in ("ckpt_path", "weights_only", "name", "runs")}


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The settings of model, data and seed that differ between two configurations: ``path old -> new``.

    Options that only one of two classes has go without saying: the class is named.
    """
    parts = ("model", "data", "seed_everything")
    old, new = (settings({part: config.get(part) for part in parts}) for config in (before, after))
    differ = {name: None for name in {**old, **new} if old.get(name) != new.get(name)}  # in order
    told = [name for name in differ if name in old.keys() & new.keys() or not _classes_beside(name) & differ.keys()]
    return [f"{name} {old.get(name, 'unset')} -> {new.get(name, 'unset')}" for name in told]


def _classes_beside(name: str) -> set[str]:
    """The class that ``model.init_args.scheduler`` is an option of, and the one that may take its place."""
    return {f"{name.rpartition('.init_args.')[0]}.class_path", f"{name}.class_path"}
