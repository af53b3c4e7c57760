"""Photos -> features of the frozen backbone, once per photo and view, for every trial that follows.

    python3 embed.py --train DIR --valid DIR [--test DIR] --report DIR --weights DIR --output DIR --backbone resnet18

The backbone stays in eval(): features are a function of the photo's bytes, the preprocessing and the weights. Several
instances share the work by shards; each writes a part of its own. PyTorch is imported inside functions: the worker
processes import this file, and do without it.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import engines
import fingerprint
import loading
import photos
import shards
import workers
from contract import FEATURES_ARRAY, FEATURES_FILE, LABELS_ARRAY, PHOTOS_FILE, SIDES, SPLIT_REPORT
from failures import PROCESSING, UserError, run
from hyperparameters import Parser
from progress import Progress

BATCH = 32  # pictures a forward pass: larger ones gain nothing on a CPU
GPU_BATCH = 256


def features_of(
    batch: list[shards.Photo], run: engines.Run, spec: photos.Preprocessing, max_pixels: int, augmented_views: int
) -> tuple[NDArray[np.float32], loading.Unreadable]:
    """A worker's task: features [n, 1 + K, D] of the readable photos, and those that are not."""
    pixels, unreadable = loading.views(batch, spec, max_pixels, augmented_views)
    return forward(pixels, run, spec, BATCH), unreadable


def forward(pixels: loading.Pixels, run: engines.Run, spec: photos.Preprocessing, most: int) -> NDArray[np.float32]:
    """Pixels [n, V, S, S, 3] -> features [n, V, D], at most so many pictures a pass."""
    count, views = pixels.shape[:2]
    flat = pixels.reshape(-1, *pixels.shape[2:])
    rows = [run(photos.normalise(flat[start : start + most], spec)) for start in range(0, len(flat), most)]
    return np.concatenate(rows).reshape(count, views, -1) if rows else np.empty((0, views, 0), np.float32)


def embed(
    index: list[shards.Photo],
    label_of: dict[str, int],
    feature_dim: int,
    output: Path,
    results: Iterator[tuple[NDArray[np.float32], loading.Unreadable]],
    batch: int,
    augmented_views: int,
) -> dict[str, int]:
    """Write features, labels and photo names of one side; memory holds a few batches, never the side.

    Args:
        index: the photos.
        label_of: label by class name.
        feature_dim: D.
        output: folder of this part and side.
        results: for each batch of the index, in order, what `features_of` gives.
        batch: photos a batch.
        augmented_views: K.

    Returns:
        How many photos were decoded, how many pictures passed through the network, and how many photos were skipped
        because they cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / FEATURES_ARRAY
    table = np.lib.format.open_memmap(path, "w+", np.float32, (len(index), 1 + augmented_views, feature_dim))
    kept: list[shards.Photo] = []
    progress = Progress(f"embedded {output.name}", len(index))
    for photos_of_batch, (features, skipped) in zip(workers.batches(index, batch), results, strict=True):
        for position, reason in skipped:
            print(f"warning: {photos_of_batch[position].name} cannot be read and is skipped: {reason}", flush=True)
        left_out = {position for position, _ in skipped}
        if not np.isfinite(features).all():
            raise UserError(
                "the backbone gives features that are not finite: its weights are damaged or not meant for it"
            )
        if len(features):
            table[len(kept) : len(kept) + len(features)] = features
        kept.extend(photo for position, photo in enumerate(photos_of_batch) if position not in left_out)
        progress.add(len(photos_of_batch))
    if not kept:
        raise UserError(f"none of the {len(index)} photos of {output.name} can be read")
    table.flush()
    del table
    if len(kept) < len(index):
        _shorten(path, len(kept))
    np.save(output / LABELS_ARRAY, np.array([label_of[photo.label] for photo in kept], np.int64))
    (output / PHOTOS_FILE).write_text(json.dumps([photo.name for photo in kept]))
    forwards = len(kept) * (1 + augmented_views)
    return {"decodes": len(kept), "forwards": forwards, "skipped": len(index) - len(kept)}


def _shorten(path: Path, rows: int) -> None:
    shorter = path.with_suffix(".tmp")
    source = np.load(path, mmap_mode="r")
    target = np.lib.format.open_memmap(shorter, "w+", source.dtype, (rows, *source.shape[1:]))
    for start in range(0, rows, 4096):
        target[start : start + 4096] = source[start : min(start + 4096, rows)]
    target.flush()
    shorter.replace(path)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = Parser(__doc__)
    inputs = Path("/opt/ml/processing/input")
    parser.add_argument("--train", type=Path, default=inputs / "train", help="shards of the training side")
    parser.add_argument("--valid", type=Path, default=inputs / "valid", help="shards of the validation side")
    parser.add_argument("--test", type=Path, help="shards of the test side, where trials are compared on it")
    parser.add_argument("--report", type=Path, default=inputs / "report", help=f"folder with Split's {SPLIT_REPORT}")
    parser.add_argument("--weights", type=Path, default=inputs / "weights", help="folder with *.pth or random.json")
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/processing/features"), help="folder for features")
    parser.add_argument("--backbone", default="resnet18", help="torchvision classification model")
    parser.add_argument("--image-size", type=int, default=224, help="side of the network's input, pixels")
    parser.add_argument("--resize-size", type=int, default=256, help="shorter side before the crop, pixels")
    parser.add_argument("--max-pixels", type=int, default=photos.MAX_PIXELS, help="larger photos are skipped")
    parser.add_argument("--augmented-views", type=int, default=0, help="random crops of each training photo, K")
    parser.add_argument("--precision", choices=engines.PRECISIONS, default="fp32", help="of the backbone's arithmetic")
    parser.add_argument("--engine", choices=engines.ENGINES, default="auto", help="what runs the backbone")
    parser.add_argument(
        "--resource-config",
        type=Path,
        default=Path("/opt/ml/config/resourceconfig.json"),
        help="SageMaker's file that says which instance this is",
    )
    options = parser.parse(arguments)
    if not 0 <= options.augmented_views <= 32:
        raise UserError(f"--augmented-views {options.augmented_views}: expected 0 to 32")
    return options


def main() -> None:
    """Embed the sides that the options name."""
    options = options_of()
    try:
        spec = photos.Preprocessing(options.resize_size, options.image_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    report = shards.report(options.report)
    sides = {side: getattr(options, side) for side in SIDES if getattr(options, side) is not None}
    indices = {side: shards.index(folder, report["classes"]) for side, folder in sides.items()}
    part = options.output / current_host(options.resource_config)

    import torch

    import networks

    weights = networks.find_weights(options.weights)
    network, feature_dim = networks.load(options.backbone, spec.image_size, weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = engines.choose(options.engine, options.precision, device)
    print(f"the backbone runs in {engine}, {options.precision}, on {device}", flush=True)
    counters: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="backbone-") as folder:
        run: engines.Run
        if engine == "torch":
            run = engines.torch_run(network, options.precision, device)
        else:
            run = engines.graph(network, spec.image_size, engine, options.precision, Path(folder))
        for side, index in indices.items():
            views = options.augmented_views if side == "train" else 0
            batch = BATCH if device == "cpu" else GPU_BATCH
            results = results_of(index, run, spec, options.max_pixels, views, batch)
            label_of = {name: label for label, name in enumerate(report["classes"])}
            for name, value in embed(index, label_of, feature_dim, part / side, results, batch, views).items():
                counters[name] = counters.get(name, 0) + value
    meta: dict[str, Any] = {
        "backbone": options.backbone,
        "feature_dim": feature_dim,
        "classes": report["classes"],
        "preprocessing": spec.to_json(),
        "weights": weights.identity,
        "views": options.augmented_views,
        "engine": engine,
        "precision": options.precision,
        "data": report["fingerprint"],
        "code": fingerprint.of_folder(Path(__file__).resolve().parent),
        "counters": counters,
    }
    (part / FEATURES_FILE).write_text(json.dumps(meta, indent=1))
    print(f"{feature_dim} features a view; " + ", ".join(f"{n} {name}" for name, n in counters.items()), flush=True)


def results_of(
    index: list[shards.Photo],
    run: engines.Run,
    spec: photos.Preprocessing,
    max_pixels: int,
    augmented_views: int,
    batch: int,
) -> Iterator[tuple[NDArray[np.float32], loading.Unreadable]]:
    """What `features_of` gives for each batch.

    A graph runs where the photos are decoded, in a worker a core: nothing waits, and only features travel. PyTorch runs
    here, on all cores or the GPU, while the workers decode the batches to come.
    """
    count = min(workers.cores(), len(index) // batch)
    chunks = workers.batches(index, batch)
    if isinstance(run, engines.Graph):
        task = partial(features_of, run=run, spec=spec, max_pixels=max_pixels, augmented_views=augmented_views)
        yield from workers.ordered_map(task, chunks, count)
        return
    load = partial(loading.views, spec=spec, max_pixels=max_pixels, augmented_views=augmented_views)
    for pixels, unreadable in workers.ordered_map(load, chunks, count):
        yield forward(pixels, run, spec, batch), unreadable


def current_host(resource_config: Path) -> str:
    """The name of this instance, `algo-1` where nobody says."""
    try:
        return str(json.loads(resource_config.read_text())["current_host"])
    except FileNotFoundError:
        return "algo-1"


if __name__ == "__main__":
    run(main, PROCESSING)
