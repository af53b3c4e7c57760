"""Fixtures more than one part of the suite needs."""

import os
from pathlib import Path

import pytest

from pipelines import sample

# No test reaches AWS by accident: whatever the environment has (a profile, CodeBuild's role) is gone before the first.
for name in [name for name in os.environ if name.startswith("AWS_")]:
    if name != "AWS_CA_BUNDLE":
        del os.environ[name]
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull


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
