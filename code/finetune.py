"""Fine-tuning of the whole network, from the head that was found on frozen features (linear probe, then fine-tune)."""

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import heads
import loading
import photos
import shards
import workers
from failures import UserError
from networks import Classifier
from progress import Progress

WEIGHT_DECAY = 0.01
BACKBONE_LR = 0.1  # of the head's: what is pretrained should move less than what is new


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of fine-tuning."""

    lr: float
    batch_size: int
    epochs: int
    seed: int


def fine_tune(
    network: Classifier,
    train: Path,
    valid: Path,
    spec: photos.Preprocessing,
    recipe: Recipe,
    observer: heads.Observer,
) -> tuple[int, heads.Score]:
    """Train everything on the photos of `train`, in place; print the metrics each epoch.

    BatchNorm keeps its running statistics, which batches this small would only spoil; its scales are trained.

    Returns:
        The epoch that was kept, the best by validation loss, and its score; 0 is the network as it came, so that the
        result is never worse than that.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    label_of = {name: label for label, name in enumerate(shards.classes(train))}
    index, held_out = shards.index(train), shards.index(valid)
    labels = torch.tensor([label_of[photo.label] for photo in index])
    criterion = nn.CrossEntropyLoss()
    optimiser = torch.optim.AdamW(
        [
            {"params": network.backbone.parameters(), "lr": recipe.lr * BACKBONE_LR},
            {"params": network.head.parameters(), "lr": recipe.lr},
        ],
        weight_decay=WEIGHT_DECAY,
    )
    peaks = [group["lr"] for group in optimiser.param_groups]
    steps = recipe.epochs * math.ceil(len(index) / recipe.batch_size)
    torch.manual_seed(recipe.seed)  # dropout
    order = torch.Generator().manual_seed(recipe.seed)

    best, best_epoch, best_state = score(network, held_out, label_of, spec, criterion), 0, _state(network)
    print("before fine-tuning:", flush=True)
    heads.print_metrics(best, None)
    observer.watch(network, criterion)
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        observer.training()
        _training_mode(network)
        permutation = torch.randperm(len(index), generator=order)
        shuffled = ((index[i], i) for i in permutation.tolist())
        batches = workers.ordered_map(
            partial(loading.augmented, size=spec.image_size, seed=(recipe.seed, epoch)),
            workers.batches(shuffled, recipe.batch_size),
            min(workers.cores(), len(index) // recipe.batch_size),
        )
        progress = Progress(f"fine-tuned, epoch {epoch}", len(index))
        total = 0.0
        for pixels, chosen in zip(batches, torch.split(permutation, recipe.batch_size), strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * heads.schedule(step, steps)
            step += 1
            inputs = torch.from_numpy(photos.normalise(pixels, spec)).to(device)
            loss = criterion(network(inputs), labels[chosen].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(chosen)
            progress.add(len(chosen))
        observer.evaluating()
        result = score(network, held_out, label_of, spec, criterion)
        print(f"epoch {epoch} of {recipe.epochs}, training loss {total / len(index):.6f}", flush=True)
        heads.print_metrics(result, None)
        if result.loss < best.loss:
            best, best_epoch, best_state = result, epoch, _state(network)
        if not math.isfinite(total):
            print("WARNING: fine-tuning diverged; take a smaller fine-tune-lr", flush=True)
            break
    network.load_state_dict(best_state)
    network.cpu().eval()
    print(f"kept epoch {best_epoch} of fine-tuning" + ("" if best_epoch else ", the head as it came"), flush=True)
    heads.print_metrics(best, None)
    return best_epoch, best


def score(
    network: Classifier,
    index: list[shards.Photo],
    label_of: dict[str, int],
    spec: photos.Preprocessing,
    criterion: nn.Module,
    batch: int = 64,
) -> heads.Score:
    """Loss and accuracy on photos, preprocessed as the endpoint does."""
    network.eval()
    device = network.head.weight.device
    task = partial(loading.centre, spec=spec, max_pixels=photos.MAX_PIXELS)
    batches = workers.ordered_map(task, workers.batches(index, batch), min(workers.cores(), len(index) // batch))

    def logits_from(start: int) -> Tensor:
        pixels, unreadable = next(batches)
        if unreadable:
            position, reason = unreadable[0]
            raise UserError(f"{index[start + position].name} cannot be read ({reason}): run Split again")
        logits: Tensor = network(torch.from_numpy(photos.normalise(pixels, spec)).to(device))
        return logits

    labels = np.array([label_of[photo.label] for photo in index], np.int64)
    return heads.evaluate(logits_from, labels, batch, criterion)


def _training_mode(network: Classifier) -> None:
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _state(network: Classifier) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())
