"""What the command-line tests share: a finished run, and what builds other ones."""

import shutil
from pathlib import Path

import pytest
from helpers import Builder, fit

from datamodules.base import ImageDataModule
from experiments import local_learning_cli
from experiments.measure.audit import locality
from models.method import Method


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on digits; for reading only."""
    return fit(tmp_path_factory.mktemp("finished"))


_AUDITED: dict[tuple[object, ...], dict[str, object]] = {}


@pytest.fixture(autouse=True)
def one_audit_of_what_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every finished run is audited, which takes a second: here once for all of a method and network."""

    def once(model: Method, data: ImageDataModule) -> dict[str, object]:
        key = type(model), model.network_name, model.num_blocks, model.num_groups, str(model.hparams)
        if key not in _AUDITED:
            _AUDITED[key] = locality(model, data)
        return _AUDITED[key]

    monkeypatch.setattr(local_learning_cli, "locality", once)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same run, which a test may change: ``tmp_path / "run"``."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="session")
def builder() -> Builder:
    """Builds what a command line asks for."""
    return Builder()


@pytest.fixture
def cifar10_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders of CIFAR-10 as JPEG files where configs look for them: classes without images."""
    for label in range(10):
        (tmp_path / "data" / "cifar10-jpeg" / "train" / f"class{label}").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
