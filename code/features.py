"""Features of a side on disk, memory-mapped: one part for each instance that embedded.

    PART/features.json   PART/SIDE/features.npy  float32 [N, 1 + K, D]: the evaluation view, then K augmented ones
                         PART/SIDE/labels.npy    int64 [N]
                         PART/SIDE/photos.json   N names, sorted

However many instances wrote them, the rows come in the order of the photos' names.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import FEATURES_ARRAY, FEATURES_FILE, LABELS_ARRAY, PHOTOS_FILE
from failures import UserError

FACTS = {
    "backbone",
    "feature_dim",
    "classes",
    "preprocessing",
    "weights",
    "views",
    "engine",
    "precision",
    "data",
    "counters",
}  # of features.json
OWN = ("counters",)  # what parts of one dataset may differ in


@dataclass(frozen=True)
class FeatureSet:
    """Features of a side, with their labels as indices into the class list."""

    labels: NDArray[np.int64]
    """[N]"""
    dim: int
    """D"""
    views: int
    """K, the augmented views of each photo."""
    parts: list[NDArray[np.float32]]
    """Each [n, 1 + K, D], memory-mapped."""
    part: NDArray[np.int64]
    """[N]: the part a row lies in, and `place`: where in that part."""
    place: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """The evaluation views of these rows."""
        return self.take(np.arange(len(self))[rows])

    def take(self, rows: NDArray[np.int64], views: NDArray[np.int64] | int = 0) -> NDArray[np.float32]:
        """[n, D]: the features of n rows, each in the view given; 0 is the evaluation view.

        Files are read forwards where `rows` ascend.
        """
        chosen = np.broadcast_to(np.asarray(views, np.int64), rows.shape)
        if len(self.parts) == 1:
            return np.asarray(self.parts[0][self.place[rows], chosen])
        taken = np.empty((len(rows), self.dim), np.float32)
        part = self.part[rows]
        for number, table in enumerate(self.parts):
            here = part == number
            taken[here] = table[self.place[rows[here]], chosen[here]]
        return taken


def describe(folder: Path) -> dict[str, Any]:
    """features.json: backbone, classes, preprocessing, weights, views, …; counters are sums over the parts.

    Raises:
        UserError: the folder was not written by Embed, or its parts do not belong together.
    """
    paths = sorted(folder.glob(f"*/{FEATURES_FILE}"))
    if not paths:
        raise UserError(f"{folder} holds no {FEATURES_FILE}: expected a folder that Embed wrote")
    metas = [_read(path) for path in paths]
    first = metas[0]
    for path, meta in zip(paths, metas, strict=True):
        if differing := [name for name in first if name not in OWN and meta.get(name) != first[name]]:
            raise UserError(f"{path} and {paths[0]} differ in {differing[0]}: they are of two runs; run Embed again")
    counters = {name: sum(meta["counters"][name] for meta in metas) for name in first["counters"]}
    return {**first, "counters": counters}


def _read(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text())
        if not isinstance(meta, dict) or not meta.keys() >= FACTS:
            raise ValueError("it is not of that form")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a file that Embed wrote") from None
    return meta


def load(folder: Path, side: str, meta: dict[str, Any]) -> FeatureSet:
    """The features of one side.

    Args:
        folder: what Embed wrote.
        side: `train`, `valid` or `test`.
        meta: `describe(folder)`.

    Raises:
        UserError: missing, damaged, or not what features.json says.
    """
    parts: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    names: list[str] = []
    for path in sorted(path.parent for path in folder.glob(f"*/{FEATURES_FILE}")):
        try:
            table = np.load(path / side / FEATURES_ARRAY, mmap_mode="r", allow_pickle=False)
            label = np.load(path / side / LABELS_ARRAY, allow_pickle=False)
            name = json.loads((path / side / PHOTOS_FILE).read_text())
        except MemoryError:
            raise
        except Exception as error:  # NumPy's reader raises half a dozen types on damaged headers
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the features of {side} in {path} cannot be read ({reason}); run Embed again") from None
        expected = (len(name), 1 + (meta["views"] if side == "train" else 0), meta["feature_dim"])
        found = (table.dtype, table.shape, label.dtype, label.shape)
        if found != (np.float32, expected, np.int64, expected[:1]):
            raise UserError(
                f"the features of {side} in {path} are {table.dtype} {table.shape} with {label.dtype} {label.shape} "
                f"labels, not float32 {expected} as {FEATURES_FILE} and {PHOTOS_FILE} say; run Embed again"
            )
        parts.append(table)
        labels.append(label)
        names.extend(name)
    together = np.concatenate(labels)
    if not len(together) or together.min() < 0 or together.max() >= len(meta["classes"]):
        raise UserError(f"the labels of {side} in {folder} are not those of {len(meta['classes'])} classes")
    part = np.repeat(np.arange(len(parts)), [len(table) for table in parts])
    place = np.concatenate([np.arange(len(table)) for table in parts])
    if len(parts) > 1:
        order = np.array(sorted(range(len(names)), key=names.__getitem__))
        together, part, place = together[order], part[order], place[order]
    return FeatureSet(together, meta["feature_dim"], parts[0].shape[1] - 1, parts, part, place)
