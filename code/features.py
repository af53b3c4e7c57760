"""Features of one side on disk: float32 [N, D] and int64 labels [N], memory-mapped."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import FEATURES_ARRAY, FEATURES_FILE, LABELS_ARRAY
from failures import UserError


@dataclass(frozen=True)
class FeatureSet:
    """Features of a side, with their labels as indices into the class list."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def describe(folder: Path) -> dict[str, Any]:
    """features.json: backbone, classes, preprocessing, weights.

    Raises:
        UserError: the folder was not written by Embed.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / FEATURES_FILE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / FEATURES_FILE} cannot be read ({error}); expected a folder that Embed wrote"
        ) from None
    return meta


def load(folder: Path, side: str, meta: dict[str, Any]) -> FeatureSet:
    """The features of one side.

    Raises:
        UserError: missing, damaged, or not what features.json says.
    """
    try:
        features = np.load(folder / side / FEATURES_ARRAY, mmap_mode="r")
        labels = np.load(folder / side / LABELS_ARRAY)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the features of {side} in {folder} cannot be read ({error}); run Embed again") from None
    expected = (len(labels), meta["feature_dim"])
    if features.shape != expected or not len(labels) or labels.min() < 0 or labels.max() >= len(meta["classes"]):
        raise UserError(f"the features of {side} are {features.shape}, not {expected} as labels and features.json say")
    return FeatureSet(features, labels)
