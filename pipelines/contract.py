"""The names in `code/contract.py` and the hashes of `code/fingerprint.py`, for the side that builds the definition.

The jobs' scripts import nothing from this package, and a package called `code` would shadow the standard library's;
so the files are loaded by their paths, once, under names of their own.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
CODE = ROOT / "code"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"job_{name}", CODE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{CODE / name}.py cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_names = _load("contract")
fingerprint = _load("fingerprint")
"""The module `code/fingerprint.py`."""

SIDES: tuple[str, ...] = _names.SIDES
CHANNEL_FEATURES: str = _names.CHANNEL_FEATURES
CHANNEL_TRAIN: str = _names.CHANNEL_TRAIN
CHANNEL_VALID: str = _names.CHANNEL_VALID
CHANNEL_WEIGHTS: str = _names.CHANNEL_WEIGHTS
METRIC_VALID_LOSS: str = _names.METRIC_VALID_LOSS
METRIC_TEST_LOSS: str = _names.METRIC_TEST_LOSS
METRIC_ACCURACY: str = _names.METRIC_ACCURACY
METRIC_REGEX: dict[str, str] = _names.METRIC_REGEX
RANDOM_WEIGHTS_FILE: str = _names.RANDOM_WEIGHTS_FILE
EVALUATION_FILE: str = _names.EVALUATION_FILE
TEST_LOSS_PATH: str = _names.TEST_LOSS_PATH
ACCURACY_PATH: str = _names.ACCURACY_PATH
