"""A finished run that the command-line tests share."""

import shutil
from pathlib import Path

import pytest
from helpers import fit


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on digits; for reading only."""
    return fit(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same run, which a test may change: ``tmp_path / "run"``."""
    return shutil.copytree(finished, tmp_path / "run")
