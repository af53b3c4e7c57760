"""Photos -> features of the frozen backbone, once per photo, for every trial that follows.

    python3 embed.py --train DIR --valid DIR [--test DIR] --weights DIR --output DIR --backbone resnet18

The backbone stays in eval(): features are a function of the photo's bytes, the preprocessing and the weights.
PyTorch is imported inside functions: the worker processes that decode photos import this file, and do without it.
"""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import loading
import photos
import shards
import workers
from contract import FEATURES_ARRAY, FEATURES_FILE, LABELS_ARRAY, PHOTOS_FILE, SIDES
from failures import PROCESSING, UserError, run
from hyperparameters import Parser
from progress import Progress

if TYPE_CHECKING:
    from torch import nn

BATCH = 32  # photos a forward pass: larger ones gain nothing on a CPU


def embed(
    network: "nn.Module", feature_dim: int, side: Path, output: Path, spec: photos.Preprocessing, max_pixels: int
) -> dict[str, int]:
    """Write features, labels and photo names of one side; memory holds a few batches, never the side.

    Returns:
        How many photos were decoded, passed through the network, and skipped because they cannot be read.
    """
    import torch

    device = next(network.parameters()).device
    index = shards.index(side)
    label_of = {name: label for label, name in enumerate(shards.classes(side))}
    output.mkdir(parents=True, exist_ok=True)
    path = output / FEATURES_ARRAY
    table = np.lib.format.open_memmap(path, "w+", np.float32, (len(index), feature_dim))
    kept: list[shards.Photo] = []
    progress = Progress(f"embedded {output.name}", len(index))
    task = partial(loading.centre, spec=spec, max_pixels=max_pixels)
    count = min(workers.cores(), len(index) // BATCH)
    batches = workers.ordered_map(task, workers.batches(index, BATCH), count)
    with torch.inference_mode():
        for batch, (pixels, skipped) in zip(workers.batches(index, BATCH), batches, strict=True):
            for position, reason in skipped:
                print(f"warning: {batch[position].name} cannot be read and is skipped: {reason}", flush=True)
            left_out = {position for position, _ in skipped}
            if len(pixels):
                features = network(torch.from_numpy(photos.normalise(pixels, spec)).to(device))
                table[len(kept) : len(kept) + len(pixels)] = features.cpu().numpy()
            kept.extend(photo for position, photo in enumerate(batch) if position not in left_out)
            progress.add(len(batch))
    if not kept:
        raise UserError(f"none of the {len(index)} photos in {side} can be read")
    if not all(np.isfinite(table[start : start + 4096]).all() for start in range(0, len(kept), 4096)):
        raise UserError("the backbone gives features that are not finite: its weights are damaged or not meant for it")
    table.flush()
    del table
    if len(kept) < len(index):
        _shorten(path, len(kept))
    np.save(output / LABELS_ARRAY, np.array([label_of[photo.label] for photo in kept], np.int64))
    (output / PHOTOS_FILE).write_text(json.dumps([photo.name for photo in kept]))
    return {"decodes": len(kept), "forwards": len(kept), "skipped": len(index) - len(kept)}


def _shorten(path: Path, rows: int) -> None:
    shorter = path.with_suffix(".tmp")
    source = np.load(path, mmap_mode="r")
    target = np.lib.format.open_memmap(shorter, "w+", source.dtype, (rows, source.shape[1]))
    for start in range(0, rows, 4096):
        target[start : start + 4096] = source[start : min(start + 4096, rows)]
    target.flush()
    shorter.replace(path)


def main() -> None:
    """Embed the sides that the options name."""
    parser = Parser(__doc__)
    inputs = Path("/opt/ml/processing/input")
    parser.add_argument("--train", type=Path, default=inputs / "train", help="shards of the training side")
    parser.add_argument("--valid", type=Path, default=inputs / "valid", help="shards of the validation side")
    parser.add_argument("--test", type=Path, help="shards of the test side, where trials are compared on it")
    parser.add_argument("--weights", type=Path, default=inputs / "weights", help="folder with *.pth or random.json")
    parser.add_argument("--output", type=Path, default=Path("/opt/ml/processing/features"), help="folder for features")
    parser.add_argument("--backbone", default="resnet18", help="torchvision classification model")
    parser.add_argument("--image-size", type=int, default=224, help="side of the network's input, pixels")
    parser.add_argument("--resize-size", type=int, default=256, help="shorter side before the crop, pixels")
    parser.add_argument("--max-pixels", type=int, default=photos.MAX_PIXELS, help="larger photos are skipped")
    options = parser.parse()
    try:
        spec = photos.Preprocessing(options.resize_size, options.image_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    sides = {side: getattr(options, side) for side in SIDES if getattr(options, side) is not None}
    classes = shards.classes(options.train)
    for side, folder in sides.items():
        if shards.classes(folder) != classes:
            raise UserError(
                f"--{side} {folder} has other classes than --train {options.train}: take sides of one split"
            )

    import torch

    import networks

    weights = networks.find_weights(options.weights)
    network, feature_dim = networks.load(options.backbone, spec.image_size, weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = networks.fused(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    counters: dict[str, int] = {}
    for side, folder in sides.items():
        for name, value in embed(network, feature_dim, folder, options.output / side, spec, options.max_pixels).items():
            counters[name] = counters.get(name, 0) + value
    meta: dict[str, Any] = {
        "backbone": options.backbone,
        "feature_dim": feature_dim,
        "classes": classes,
        "preprocessing": spec.to_json(),
        "weights": weights.identity,
        "counters": counters,
    }
    (options.output / FEATURES_FILE).write_text(json.dumps(meta, indent=1))
    print(f"{feature_dim} features a photo; " + ", ".join(f"{n} {name}" for name, n in counters.items()), flush=True)


if __name__ == "__main__":
    run(main, PROCESSING)
