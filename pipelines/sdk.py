"""SageMaker's SDK kept quiet, offline and quick while a definition is built. Imports nothing of it itself."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

# Instead of the config files the machine may have, which would leak into the definition; and no telemetry, which would
# ask STS for the account and then send it to AWS.
CONFIG: dict[str, Any] = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


def prepare() -> None:
    """Call before the SDK is imported: it would ask IAM for the role, and makes a client that wants some region."""
    os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the SDK's remarks: that no job is started, that names are left to SageMaker, where it found no config."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def validated_once() -> Iterator[None]:
    """With the config checked now and no more.

    The SDK checks it against its schema at every look, some ninety times a definition: 17 s instead of one.
    """
    from sagemaker.core.config.config_manager import SageMakerConfig

    SageMakerConfig.validate_sagemaker_config(CONFIG)
    with patch.object(SageMakerConfig, "validate_sagemaker_config", staticmethod(lambda config=None: None)):
        yield
