"""Fixtures more than one part of the suite needs."""

from pathlib import Path

import pytest

from pipelines import sample


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample dataset, all 1,797 photos: one folder a class."""
    folder = tmp_path_factory.mktemp("digits")
    sample.write(folder)
    return folder


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos of each digit, where accuracy is not the point."""
    folder = tmp_path_factory.mktemp("few-digits")
    sample.write(folder, per_class=40)
    return folder
