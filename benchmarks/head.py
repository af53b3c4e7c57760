"""Training a head on features: hpo.py against a loader of single photos and a plain loop.

    python -m benchmarks.head [--rows 6680 --batch-sizes 10 32 256]

CPU seconds an epoch. Ours is a whole process of hpo.py; the difference between one with many epochs and one with few
leaves its start out, and includes the validation after each epoch. The plain loop does the same training: DataLoader
over a TensorDataset, Adam, and the validation.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import measure, ours

FEW = 2  # epochs of the shorter process


def plain(rows: dict[str, int], dim: int, classes: int, batch_size: int, epochs: int) -> float:
    """CPU seconds an epoch of the plain loop."""
    torch.manual_seed(0)
    sides = {
        side: TensorDataset(torch.randn(count, dim), torch.arange(count) % classes) for side, count in rows.items()
    }
    head = nn.Linear(dim, classes)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.001)
    criterion = nn.CrossEntropyLoss()
    begin = measure.own_cpu_seconds()
    for _ in range(epochs):
        for x, y in DataLoader(sides["train"], batch_size=batch_size, shuffle=True):
            optimiser.zero_grad()
            criterion(head(x), y).backward()
            optimiser.step()
        with torch.no_grad():
            for x, y in DataLoader(sides["valid"], batch_size=batch_size):
                criterion(head(x), y).item()
    return (measure.own_cpu_seconds() - begin) / epochs


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Both, in turn, for each batch size."""
    torch.set_num_threads(options.threads)
    rows = {"train": options.rows, "valid": max(options.classes, options.rows // 8)}
    each: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        scripts, features = ours.tiny_features(options.code.resolve(), Path(name))
        ours.enlarge(features, rows, options.dim, options.classes)
        many = FEW + options.epochs
        for batch_size in options.batch_sizes:
            shorter, longer, loop = list[float](), list[float](), list[float]()
            for _ in range(options.repeats):
                loop.append(plain(rows, options.dim, options.classes, batch_size, options.epochs))
                for epochs, spent in ((FEW, shorter), (many, longer)):
                    scripts.trial(0, epochs, 0.001, batch_size)
                    spent.append(scripts.seconds[ours.Job("hpo.py", epochs=epochs)][-1])
            few = statistics.median(shorter)
            epoch = max(0.0, statistics.median(longer) - few) / options.epochs
            each[str(batch_size)] = {
                "ours_s_per_epoch": epoch,
                "plain_s_per_epoch": statistics.median(loop),
                "ours_process_s": max(0.0, few - FEW * epoch),
            }
            measure.say(f"batch {batch_size}: {each[str(batch_size)]}")
    return {
        "batch_sizes": each,
        "rows": rows,
        "dim": options.dim,
        "classes": options.classes,
        "machine": measure.machine(),
    }


def main() -> None:
    """Measure what the options name."""
    parser = measure.parser(__doc__)
    parser.add_argument("--code", type=Path, default=measure.CODE, help="folder with the scripts to measure")
    parser.add_argument("--rows", type=measure.positive, default=6680, help="training photos; an eighth to validate")
    parser.add_argument("--dim", type=measure.positive, default=512, help="features a photo")
    parser.add_argument("--classes", type=measure.positive, default=133, help="outputs of the head")
    parser.add_argument("--batch-sizes", type=measure.positive, nargs="+", default=[10, 32, 256], help="photos a step")
    parser.add_argument("--epochs", type=measure.positive, default=30, help="epochs between the two measurements")
    parser.add_argument("--repeats", type=measure.positive, default=3, help="measurements of each, in turn")
    options = parser.parse_args()
    result = bench(options)
    table = [("batch size", "ours, CPU s an epoch", "plain loop", "our process besides")]
    for size, row in result["batch_sizes"].items():
        epoch, loop = f"{row['ours_s_per_epoch']:.3f}", f"{row['plain_s_per_epoch']:.3f}"
        table.append((size, epoch, loop, f"{row['ours_process_s']:.2f}"))
    measure.show(result, table, options.json)


if __name__ == "__main__":
    main()
