"""Features of one side on disk: float32 [N, D] and int64 labels [N], memory-mapped."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import FEATURES_ARRAY, FEATURES_FILE, LABELS_ARRAY
from failures import UserError

FACTS = {"backbone", "feature_dim", "classes", "preprocessing", "weights"}  # of features.json


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
        meta = json.loads((folder / FEATURES_FILE).read_text())
        if not isinstance(meta, dict) or not meta.keys() >= FACTS:
            raise ValueError("it is not of that form")
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
        features = np.load(folder / side / FEATURES_ARRAY, mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / side / LABELS_ARRAY, allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # NumPy's reader raises half a dozen types on damaged headers
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the features of {side} in {folder} cannot be read ({reason}); run Embed again") from None
    expected = (len(labels) if labels.ndim else 0, meta["feature_dim"])
    if features.shape != expected or features.dtype != np.float32 or labels.ndim != 1 or labels.dtype != np.int64:
        raise UserError(
            f"the features of {side} in {folder} are {features.dtype} {features.shape} with {labels.dtype} "
            f"{labels.shape} labels, not float32 {expected} as features.json says; run Embed again"
        )
    if not len(labels) or labels.min() < 0 or labels.max() >= len(meta["classes"]):
        raise UserError(f"the labels of {side} in {folder} are not those of {len(meta['classes'])} classes")
    return FeatureSet(features, labels)
