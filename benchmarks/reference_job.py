"""One training job of the reference experiment, written as tutorials write it.

    python -m benchmarks.reference_job --data DIR --lr 0.001 --batch-size 32 --epochs 2 [--test]

Every epoch decodes every photo again (random crop and flip), pushes it through the whole network in train() mode with
a frozen body, and trains the new last layer with Adam. Then the validation photos. Reports the CPU time of each part.
"""

import argparse
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from benchmarks import measure

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Photos = Dataset[tuple[Tensor, int]]


def create(backbone: str, classes: int, weights: Path | None) -> tuple[nn.Module, nn.Module]:
    """The network with a frozen body and a new last layer, and that layer."""
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.get_model(backbone, weights=None)
    if weights is not None:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    for parameter in network.parameters():
        parameter.requires_grad = False
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    name, last = layers[-1]  # a convolution in SqueezeNet
    head: nn.Module
    if isinstance(last, nn.Linear):
        head = nn.Linear(last.in_features, classes)
    else:
        head = nn.Conv2d(last.in_channels, classes, kernel_size=1)
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, head)
    return network, head


def side(folder: Path, name: str, size: int, limit: int) -> tuple[Photos, int]:
    """The photos of a side, at most `limit` of them (0: all), spread evenly; and the number of classes."""
    common = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if name == "train":
        steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *common]
    else:
        steps = [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size), *common]
    found = torchvision.datasets.ImageFolder(folder / name, transforms.Compose(steps))
    count = min(limit, len(found)) or len(found)
    return Subset(found, [i * len(found) // count for i in range(count)]), len(found.classes)


def loader(photos: Photos, batch_size: int, workers: int, shuffle: bool = False) -> "DataLoader[tuple[Tensor, Tensor]]":
    """As everybody makes it."""
    made = DataLoader(photos, batch_size=batch_size, shuffle=shuffle, num_workers=workers)
    return cast("DataLoader[tuple[Tensor, Tensor]]", made)


def train(network: nn.Module, batches: "DataLoader[tuple[Tensor, Tensor]]", optimiser: torch.optim.Optimizer) -> None:
    """One epoch."""
    criterion = nn.CrossEntropyLoss()
    network.train()
    for photos, labels in batches:
        optimiser.zero_grad()
        loss = criterion(network(photos), labels)
        loss.backward()
        optimiser.step()


@torch.no_grad()
def evaluate(network: nn.Module, batches: "DataLoader[tuple[Tensor, Tensor]]") -> tuple[float, float]:
    """Mean cross-entropy, and the share of photos labelled right."""
    network.eval()
    loss, right, count = 0.0, 0, 0
    for photos, labels in batches:
        logits = network(photos)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, right / count


def job(options: argparse.Namespace) -> dict[str, Any]:
    """Run it; CPU seconds of each part, the passes of photos they stand for, and the metrics."""
    training, classes = side(options.data, "train", options.image_size, options.limit)
    validation, _ = side(options.data, "valid", options.image_size, options.eval_limit)
    network, head = create(options.backbone, classes, options.weights)
    optimiser = torch.optim.Adam(head.parameters(), lr=options.lr)
    seconds = {"loader_start": 0.0, "train": 0.0, "eval": 0.0}
    passes = {"train": 0, "eval": 0}

    def timed(part: str, count: int, before: float) -> None:
        seconds[part] += measure.cpu_seconds() - before
        passes[part] += count

    before = measure.cpu_seconds()
    for _ in loader(Subset(validation, [0]), 1, options.workers):
        pass  # what a pass costs before its first photo: the loader's processes
    seconds["loader_start"] = measure.cpu_seconds() - before
    metrics = []
    for _ in range(options.epochs):
        before = measure.cpu_seconds()
        train(network, loader(training, options.batch_size, options.workers, shuffle=True), optimiser)
        timed("train", len(cast(Sized, training)), before)
        before = measure.cpu_seconds()
        loss, accuracy = evaluate(network, loader(validation, options.batch_size, options.workers))
        timed("eval", len(cast(Sized, validation)), before)
        metrics.append({"valid_loss": loss, "valid_accuracy": accuracy})
    result: dict[str, Any] = {"cpu_s": seconds, "photo_passes": passes, "epochs": metrics}
    if options.test:
        held_out, _ = side(options.data, "test", options.image_size, options.eval_limit)
        before = measure.cpu_seconds()
        loss, accuracy = evaluate(network, loader(held_out, options.batch_size, options.workers))
        timed("eval", len(cast(Sized, held_out)), before)
        result["test"] = {"loss": loss, "accuracy": accuracy}
    return result


def main() -> None:
    """Run the job that the options name."""
    parser = measure.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="train, valid and test folders of class folders")
    parser.add_argument("--lr", type=float, default=0.001, help="Adam's learning rate")
    parser.add_argument("--batch-size", type=measure.positive, default=32, help="photos a step")
    parser.add_argument("--epochs", type=measure.positive, default=2, help="passes over the training photos")
    parser.add_argument("--test", action="store_true", help="evaluate on the test photos at the end")
    parser.add_argument("--limit", type=measure.whole, default=0, help="training photos to use; 0: all")
    parser.add_argument("--eval-limit", type=measure.whole, default=0, help="photos of other sides to use; 0: all")
    parser.add_argument("--backbone", default="resnet18", help="torchvision classification model")
    parser.add_argument("--weights", type=Path, help="*.pth of the whole network; else random ones")
    parser.add_argument("--image-size", type=measure.positive, default=224, help="side of the crop, pixels")
    parser.add_argument("--workers", type=measure.whole, default=2, help="of each loader")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    result = {**job(options), "clock_s": time.perf_counter() - started, "machine": measure.machine()}
    table = [("part", "CPU s", "photo-passes")]
    table += [(part, f"{s:.2f}", str(result["photo_passes"].get(part, ""))) for part, s in result["cpu_s"].items()]
    measure.show(result, table, options.json)


if __name__ == "__main__":
    main()
