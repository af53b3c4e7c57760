"""SageMaker's SDK kept quiet, offline and quick while a definition is built. Imports nothing of it itself."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import boto3

# Instead of the config files the machine may have, which would leak into the definition; and no telemetry, which would
# ask STS for the account and then send it to AWS.
CONFIG: dict[str, Any] = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}

_NOBODY = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nobody",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def importing() -> Iterator[None]:
    """Import the SDK in here: as it loads it makes a client, and later it would ask IAM for the role."""
    os.environ["SAGEMAKER_VALIDATE_ROLE"] = "false"
    with nobody("us-east-1"), quiet():
        yield


@contextmanager
def building(region: str) -> Iterator[None]:
    """Build a definition in here."""
    with nobody(region), quiet(), validated_once():
        yield


@contextmanager
def nobody(region: str) -> Iterator[None]:
    """With an AWS environment that is nobody's.

    The SDK makes sessions of its own by the way: with the user's profile they would look for credentials in the
    network, and the environment's region would change the definition.
    """
    session = boto3.DEFAULT_SESSION
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    try:
        with patch.dict(os.environ, {**kept, **_NOBODY, "AWS_DEFAULT_REGION": region}, clear=True):
            boto3.DEFAULT_SESSION = None
            yield
    finally:
        boto3.DEFAULT_SESSION = session


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
